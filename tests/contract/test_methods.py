"""Every method of the table is held to the contract; a new one joins by its line in the table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from crossdistill.method import MethodConfig
from crossdistill.methods import (
    CRD,
    KD,
    METHODS,
    MLKD,
    PKT,
    SP,
    MultiDistillation,
    RichKD,
    RichKDF,
    Route,
    Salience,
    Specialise,
)
from crossdistill.testing import CLAUSES, TOY_MAPS, check_method, check_ranks, toy_dataset, toy_map_models
from crossdistill.testing.contract import hold
from crossdistill.testing.rehearsal import Contract

# Settings as functions of the teachers' names, where the defaults do not suit toy data or there are none.
ARGUMENTS: Mapping[str, Callable[[Sequence[str]], MethodConfig]] = {
    # Few negatives, because the data are few; weights at which rounding stays below what is compared.
    "crd": lambda _: CRD(negatives=32, width=16),
    # Toy rows have no domain.
    "multi-distillation": lambda _: MultiDistillation(routing="all"),
    "pkt": lambda _: PKT(weight=100.0),
    "richkd": lambda _: RichKD(negatives=32, width=16),
    "richkd-f": lambda _: RichKDF(negatives=32, width=16),
    # The last tap of the toy networks is beside their logits; one permutation does for the contract.
    "salience": lambda teachers: Salience(taps=dict.fromkeys(teachers, "hidden"), repeats=1),
    "sp": lambda _: SP(weight=30.0),
    "specialise": lambda teachers: Specialise(taps=dict.fromkeys(teachers, ("joint", "hidden"))),
}

# Methods that compare spatial features, which the small networks of the default cast do not have.
ON_MAPS = {name for name, method in METHODS.items() if method.acts_on == "maps"}

# What moves in the method's stage, where that is not the student with the method's own modules.
TRAINS: Mapping[str, tuple[str, ...]] = {
    "c2kd": ("all", "student"),
    "collaborate": ("all", "student"),
    "dml": ("all",),
    "specialise": ("method",),
}

CASES = [(name, trains) for name in METHODS for trains in TRAINS.get(name, ("student",))]

# Methods of each kind; the whole contract of every other one is among the slow tests.
ALSO_FAST = {"supervised", "kd", "hint", "specialise", "route"}


# Where rounding in a norm over all rows can carry a unit across the kink of its ReLU.
TOLERANCES: Mapping[str, float] = {"c2kd": 2e-4}


def settings_of(name: str) -> MethodConfig | Callable[[Sequence[str]], MethodConfig]:
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    try:
        return METHODS[name]()
    except ValidationError as error:
        missing = [".".join(map(str, fault["loc"])) for fault in error.errors()]
        pytest.fail(
            f"the method {name!r} cannot be built without {missing}: give it a line in ARGUMENTS of this file, "
            "so that it is held to the contract too"
        )


def cast_of(name: str) -> dict[str, Any]:
    """Networks with maps and data for them, where the method needs those."""
    if name not in ON_MAPS:
        return {}
    dataset = toy_dataset(TOY_MAPS)
    student, *others = (cast := toy_map_models(dataset, teachers=4))
    cast["teacher-0"].needs = "any"
    return {"student": cast[student], "teachers": {other: cast[other] for other in others}, "dataset": dataset}


def test_the_tables_here_name_methods_that_exist() -> None:
    assert {*ARGUMENTS, *TRAINS, *TOLERANCES, *ALSO_FAST} <= set(METHODS)


@pytest.mark.parametrize(
    ("name", "trains"),
    [pytest.param(*case, marks=() if case[0] in ALSO_FAST else pytest.mark.slow) for case in CASES],
)
def test_a_method_keeps_the_contract(name: str, trains: str) -> None:
    check_method(settings_of(name), trains=trains, **cast_of(name))


# Other comparisons of embeddings than the defaults.
CONTRASTS = [RichKDF(negatives=32, width=16, feature_loss=kind) for kind in ("infonce", "queue", "mse")]
CONTRASTS += [CRD(negatives=32, width=16, draw="shared")]


@pytest.mark.slow
@pytest.mark.parametrize("settings", CONTRASTS, ids=lambda settings: getattr(settings, "feature_loss", "shared"))
def test_every_contrast_keeps_the_contract(settings: MethodConfig) -> None:
    check_method(settings)


@pytest.mark.slow
def test_a_queue_is_the_same_for_two_processes() -> None:
    check_ranks(CONTRASTS[1])


# Other ways to combine several teachers than the defaults.
COMBINED = [KD(combine=each) for each in ("probabilities", "logits", "best")]
COMBINED += [MLKD(masks="scalar"), Route(k=2, routing="learned"), Route(routing="mean")]


@pytest.mark.parametrize("settings", COMBINED, ids=lambda settings: settings.name)
def test_teachers_are_combined_in_the_rows_that_they_can_read(settings: MethodConfig) -> None:
    clause = next(clause for clause in CLAUSES if "several teachers" in clause)
    hold(Contract(settings, toy_dataset(("first", "second", "third"))), clause, CLAUSES[clause])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trains"), CASES)
def test_two_processes_compute_what_one_does(name: str, trains: str) -> None:
    check_ranks(settings_of(name), trains=trains, tolerance=TOLERANCES.get(name, 1e-5), **cast_of(name))

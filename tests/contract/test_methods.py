"""Every method of the table is held to the contract; a new one joins by its line in the table."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from pydantic import ValidationError

from crossdistill.method import MethodConfig
from crossdistill.methods import METHODS
from crossdistill.methods.specialise import Specialise
from crossdistill.testing import check_method, check_ranks

# Methods whose settings have no default, as functions of the teachers' names.
ARGUMENTS: Mapping[str, Callable[[Sequence[str]], MethodConfig]] = {
    "specialise": lambda teachers: Specialise(taps=dict.fromkeys(teachers, ("joint", "hidden"))),
}

# What moves in the method's stage, where that is not the student with the method's own modules.
TRAINS: Mapping[str, tuple[str, ...]] = {
    "collaborate": ("all", "student"),
    "specialise": ("method",),
}

CASES = [(name, trains) for name in METHODS for trains in TRAINS.get(name, ("student",))]


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


def test_the_tables_here_name_methods_that_exist() -> None:
    assert {*ARGUMENTS, *TRAINS} <= set(METHODS)


@pytest.mark.parametrize(("name", "trains"), CASES)
def test_a_method_keeps_the_contract(name: str, trains: str) -> None:
    check_method(settings_of(name), trains=trains)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trains"), CASES)
def test_two_processes_compute_what_one_does(name: str, trains: str) -> None:
    check_ranks(settings_of(name), trains=trains)

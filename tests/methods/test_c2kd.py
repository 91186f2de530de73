"""C2KD: who teaches whom, where the gate opens, and whose labels count."""

import pytest
import torch
from facts import raises
from stand_ins import DENSE, SPEC, Cast, data_of, rows_of

from crossdistill.errors import ApplicabilityError
from crossdistill.losses import cross_entropy, distillation_kl, kendall_tau_b, non_target_kl
from crossdistill.method import STUDENT
from crossdistill.methods.c2kd import C2KD
from crossdistill.nets.proxy import DenseProxy, VectorProxy
from crossdistill.outputs import OutputSpec, Signal


def proxies(cast: Cast) -> tuple[torch.Tensor, torch.Tensor]:
    mine = cast.method.get_submodule("mine")(*cast.features("student", "fc"))
    return mine, cast.method.get_submodule("theirs.a")(*cast.features("a", "fc"))


def test_the_terms_by_hand() -> None:
    cast = Cast(C2KD(), {"a": SPEC, "b": SPEC})
    weights = cast.weights()
    assert {name: weight for name, weight in weights.items() if weight != 1.0} == {
        "others/a->student": 0.5,
        "others/b->student": 0.5,
    }
    targets = torch.arange(8) % 4
    (mine, theirs), student, teacher = proxies(cast), cast.logits("student"), cast.logits("a")
    gate = kendall_tau_b(mine, theirs) > 0
    assert 0 < int(gate.sum()) < 8
    wanted = {
        "task/student": cross_entropy(student, targets),
        "task/a": cross_entropy(teacher, targets),
        "proxy/student": distillation_kl(mine, student, 1.0),
        "network/student": distillation_kl(student, mine, 1.0),
        "proxy/a": distillation_kl(theirs, teacher, 1.0),
        "network/a": distillation_kl(teacher, theirs, 1.0),
        "others/a->student": non_target_kl(mine, theirs, targets) * gate,
        "others/student->a": non_target_kl(theirs, mine, targets) * gate,
    }
    for name, value in wanted.items():
        torch.testing.assert_close(cast.value(name), value)


def test_targets_of_a_divergence_get_no_gradient() -> None:
    cast = Cast(C2KD(), {"a": SPEC})
    step = cast.step()
    sides = {"mine": "others/a->student", "theirs": "others/student->a"}
    for side, name in sides.items():
        cast.method.zero_grad()
        step.terms[name].value.sum().backward(retain_graph=True)
        assert {key.split(".")[0] for key, own in cast.method.named_parameters() if own.grad is not None} == {side}


@pytest.mark.parametrize("gate", ["rows", "any", "none"])
def test_gates(gate: str) -> None:
    def at(threshold: float) -> Cast:
        return Cast(C2KD.model_validate({"gate": gate, "threshold": threshold}), {"a": SPEC, "b": SPEC})

    never, some = at(1.0), at(0.0)
    everything = Cast(C2KD(gate="none"), {"a": SPEC, "b": SPEC}).value("others/a->student")
    assert bool((everything > 0).all())
    closed = never.value("others/a->student")
    assert bool((closed == 0).all()) == (gate != "none")
    assert torch.equal(some.value("others/a->student"), everything) == (gate != "rows")


def test_rows_without_a_label_say_nothing_besides_the_target() -> None:
    cast = Cast(C2KD(gate="none"), {"a": SPEC}, data=data_of(labelled_fraction=0.5))
    labelled = torch.arange(8) % 2 == 0
    step = cast.step(rows_of(labelled=labelled))
    for name in ("others/a->student", "others/student->a"):
        assert bool((step.terms[name].value[~labelled] == 0).all())
        assert step.terms[name].share == 0.5
    assert step.terms["task/a"].share == 1.0, "a teacher keeps its labels"


def test_proxies_suit_the_networks() -> None:
    assert isinstance(Cast(C2KD(), {"a": SPEC}).method.get_submodule("mine"), VectorProxy)
    dense = Cast(C2KD(), {"a": DENSE}, DENSE)
    assert isinstance(dense.method.get_submodule("mine"), DenseProxy)
    targets = torch.randint(0, 4, (8, 6, 4))
    step = dense.step(rows_of(targets=targets))
    assert all(term.value.shape == (8,) and bool(term.value.isfinite().all()) for term in step.terms.values())
    assert dense.method.needs()[STUDENT] == frozenset({Signal.LOGITS, Signal.feature("late")})


def test_a_network_without_features_is_refused() -> None:
    with raises(ApplicabilityError, "c2kd", 1, "logits"):
        C2KD().build(SPEC, {"a": OutputSpec(logits=(4,))}, data_of())

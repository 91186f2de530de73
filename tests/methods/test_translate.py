"""Feature translation: the compared features, its terms by hand, statistics, balance and dropped teachers."""

import pytest
import torch
from pydantic import ValidationError
from stand_ins import OTHER, SPEC, Cast, rows_of

from crossdistill import OutputSpec, Signal
from crossdistill.errors import ApplicabilityError, SettingError, SignalError
from crossdistill.losses import feature_distance
from crossdistill.method import STUDENT, Progress
from crossdistill.methods.translate import Translate
from crossdistill.nets.translators import Translation
from crossdistill.testing import TOY_MAPS, check_method, check_ranks, toy_dataset, toy_map_models

TOKENS = OutputSpec(logits=(4,), embedding=(6,), features={"block": (10, 6)})


def translation(cast: Cast, name: str) -> Translation:
    found = cast.method.get_submodule(f"translations.{name}")
    assert isinstance(found, Translation)
    return found


def test_the_terms_by_hand() -> None:
    cast = Cast(Translate(weight_patches=0.5, standardise="z-score"), {"a": OTHER, "b": TOKENS})
    assert cast.weights() == {"translate/a": 0.5, "translate/b": 0.5}
    assert cast.method.needs() == {
        STUDENT: {Signal.feature("late"), Signal.feature("fc")},
        "a": {Signal.feature("second"), Signal.feature("end")},
        "b": {Signal.EMBEDDING, Signal.feature("block")},
    }
    cast.method.measure([rows_of()], cast.student, cast.teachers)
    (fc, late), (end, second) = cast.features("student", "fc", "late"), cast.features("a", "end", "second")
    wanted = []
    for number, (mine, theirs) in enumerate(((fc.unsqueeze(1), end.unsqueeze(1)), (late, second))):
        made = translation(cast, f"a:{number}")
        target = theirs if number == 0 else theirs.flatten(2).transpose(1, 2)
        mean, deviation = target.flatten(0, 1).mean(0), target.flatten(0, 1).std(0, correction=0)
        moved = made(mine.squeeze(1) if number == 0 else mine)
        kind = "cosine" if number == 0 else "cosine+smooth-l1"
        wanted.append(feature_distance(moved, (target - mean) / deviation, kind) * (1.0, 0.5)[number])
    torch.testing.assert_close(cast.value("translate/a"), wanted[0] + wanted[1])
    found = cast.method.validate(rows_of(targets=None), cast.student, cast.teachers)[STUDENT]
    torch.testing.assert_close(found, (cast.value("translate/a") + cast.value("translate/b")) / 2)


def test_layers_are_named_or_left_out() -> None:
    teachers = {"a": OTHER, "b": TOKENS}
    alone = Translate(taps=()).translated(SPEC, teachers)
    assert {name: [str(pair.teacher) for pair in pairs] for name, pairs in alone.items()} == {
        "a": ["feature:end"],
        "b": ["embedding"],
    }
    named = Translate(taps=("early", "late"), teacher_taps={"a": ("first", "second"), "b": ()}, summary=False)
    with pytest.raises(ApplicabilityError, match="'b'"):
        named.translated(SPEC, teachers)
    pairs = named.model_copy(update={"summary": True}).translated(SPEC, teachers)
    assert [str(pair.student) for pair in pairs["a"]] == ["feature:fc", "feature:early", "feature:late"]
    assert len(pairs["b"]) == 1
    with pytest.raises(SettingError, match="teacher 'a'"):
        Translate(taps=("early", "late"), teacher_taps={"a": ("first",)}).translated(SPEC, {"a": OTHER})
    with pytest.raises(SignalError, match="'firts'"):
        Translate(teacher_taps={"a": ("firts",)}).translated(SPEC, {"a": OTHER})
    with pytest.raises(SettingError, match="'c'"):
        Cast(Translate(prefix_tokens={"c": 1}), teachers)
    with pytest.raises(ApplicabilityError, match="at least one teacher"):
        Cast(Translate(), {})
    with pytest.raises(ValidationError, match="head"):
        Translate.model_validate({"head": "cnn"})


def test_class_tokens_are_no_patches() -> None:
    cast = Cast(Translate(prefix_tokens={"b": 1, "student": 1}), {"b": TOKENS}, student=TOKENS)
    assert translation(cast, "b:1").of_teacher(torch.zeros(2, 10, 6)).shape == (2, 9, 6)


def test_a_teachers_loss_is_divided_by_its_running_mean() -> None:
    plain = Cast(Translate(), {"a": OTHER, "b": TOKENS}).value("translate/a")
    cast = Cast(Translate(balance="loss", momentum=0.75), {"a": OTHER, "b": TOKENS})
    step = cast.step()
    torch.testing.assert_close(step.terms["translate/a"].value, plain)
    cast.method.after_step(rows_of(), step)
    step = cast.step()
    torch.testing.assert_close(step.terms["translate/a"].value, plain / plain.mean())
    cast.method.get_buffer("running")[0] = 3.0
    cast.method.after_step(rows_of(), step)
    torch.testing.assert_close(cast.method.get_buffer("running")[0], 0.75 * 3 + 0.25 * plain.mean().detach())


def test_a_features_loss_is_divided_by_its_variance() -> None:
    settings = {"standardise": "none", "patch_loss": "mse", "summary": False}
    plain, even = (Cast(Translate.model_validate({**settings, "balance": how})) for how in ("none", "variance"))
    for cast in (plain, even):
        cast.method.measure([rows_of()], cast.student, cast.teachers)
    variance = even.features("mm", "second")[0].transpose(0, 1).flatten(1).var(1, correction=0).mean()
    torch.testing.assert_close(even.value("translate/mm"), plain.value("translate/mm") / variance)


def test_dropped_teachers_are_a_function_of_the_step() -> None:
    cast = Cast(Translate(drop=0.5), {"a": OTHER, "b": TOKENS, "c": OTHER})
    seen = [tuple(cast.step(progress=Progress(step=step)).terms) for step in range(60)]
    assert seen == [tuple(cast.step(progress=Progress(step=step)).terms) for step in range(60)]
    assert min(map(len, seen)) == 1
    share = sum("translate/b" in terms for terms in seen) / 60
    assert 0.35 < share < 0.8  # one half, and a share of the steps in which all would be dropped
    assert len(cast.method.validate(rows_of(), cast.student, cast.teachers)[STUDENT]) == 8
    step = cast.step(progress=Progress(step=seen.index(("translate/b",))))
    assert step.terms["translate/b"].share == 1


# With this seed the first step leaves no teacher out: the contract asks that each takes part in it.
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"balance": "loss"}, {"drop": 0.3, "drop_seed": 9, "head": "conv"}])
def test_networks_with_maps_keep_the_contract(settings: dict[str, object]) -> None:
    dataset = toy_dataset(TOY_MAPS, rows=120)
    student, *others = (cast := toy_map_models(dataset))
    networks = {"student": cast[student], "teachers": {name: cast[name] for name in others}}
    check_method(Translate.model_validate(settings), dataset=dataset, **networks)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"balance": "loss"}, {"drop": 0.5}, {"head": "tokens"}])
def test_two_processes_compute_what_one_does(settings: dict[str, object]) -> None:
    check_ranks(Translate.model_validate(settings))

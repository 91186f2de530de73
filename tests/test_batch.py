"""What flows through a step: rows that belong together, and who may use which label."""

from dataclasses import fields

import pytest
import torch
from facts import raises
from jaxtyping import config
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.errors import ShapeError, SignalError


def made(**changes: object) -> Batch:
    """Four rows with something in every field."""
    given: dict[str, object] = {
        "inputs": {
            "image": torch.arange(8.0).view(4, 2),
            "text": {"tokens": torch.arange(4), "mask": torch.ones(4, 3)},
        },
        "ids": torch.tensor([10, 11, 12, 13]),
        "view": torch.tensor([0, 1, 0, 1]),
        "targets": torch.tensor([0, MISSING_TARGET, 2, 1]),
        "labelled": torch.tensor([True, True, False, True]),
        "present": {"image": torch.tensor([True, False, True, True]), "text": torch.tensor([True, True, False, True])},
        "domain": ["speech", "music", "speech", "music"],
        "domain_rows": {"speech": 2, "music": 2},
    }
    return Batch(**(given | changes))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("inputs", {"image": torch.zeros(3, 2)}, ("'image'", "3 rows")),
        ("inputs", {"text": {"tokens": torch.zeros(5)}}, ("'text.tokens'", "5 rows")),
        ("targets", torch.zeros(2, dtype=torch.int64), ("'targets'", "2 rows")),
        ("labelled", torch.ones(1, dtype=torch.bool), ("'labelled'", "1 rows")),
        ("view", torch.zeros(9, dtype=torch.int64), ("'view'", "9 rows")),
        ("present", {"text": torch.ones(3, dtype=torch.bool)}, ("'present.text'", "3 rows")),
    ],
)
def test_every_tensor_has_as_many_rows_as_there_are_ids(
    field: str, value: object, named: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users run without checked annotations, which would be the first to notice here.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with raises(ShapeError, *named, "4 sample ids"):
        made(**{field: value})


def test_the_whole_step_is_this_batch_unless_told_otherwise() -> None:
    assert made().total_rows == len(made()) == 4
    assert made(total_rows=64).total_rows == 64


def test_an_unknown_modality_says_who_asked_and_the_nearest() -> None:
    assert made().read("image").shape == (4, 2)
    with raises(SignalError, "LeNet5", "'imagee'", "'image'"):
        made().read("imagee", "LeNet5")


def test_which_rows_have_a_target_and_which_of_them_the_student_may_use() -> None:
    assert made().has_target().tolist() == [True, False, True, True]
    assert made(targets=None).has_target().tolist() == [False] * 4
    pixels = torch.full((4, 2, 2), MISSING_TARGET)
    pixels[2, 1, 0] = 3
    assert made(targets=pixels).has_target().tolist() == [False, False, True, False]
    soft = torch.full((4, 3), torch.nan)
    soft[0] = 1 / 3
    assert made(targets=soft).has_target().tolist() == [True, False, False, False]
    assert made().student_rows().tolist() == [True, False, False, True]
    assert made(labelled=None).student_rows().tolist() == made().has_target().tolist()


@pytest.mark.parametrize(
    ("modalities", "rows"),
    [
        (("image",), [True, False, True, True]),
        (("image", "text"), [True, False, False, True]),
        (("image", "depth"), [True, False, True, True]),
        (("depth",), None),
        ((), None),
    ],
)
def test_rows_in_which_all_modalities_are_there(modalities: tuple[str, ...], rows: list[bool] | None) -> None:
    found = made().rows_with(modalities)
    assert (None if found is None else found.tolist()) == rows


@pytest.mark.parametrize("rows", [torch.tensor([3, 0]), torch.tensor([True, False, False, True])])
def test_selected_rows_stay_together(rows: Tensor) -> None:
    part = made(total_rows=64).select(rows)
    index = [3, 0] if rows.dtype == torch.int64 else [0, 3]
    whole = made()
    assert part.ids.tolist() == [whole.ids.tolist()[i] for i in index]
    assert torch.equal(part.read("image"), whole.read("image")[index])
    assert part.read("text")["tokens"].tolist() == index
    assert part.view.tolist() == [whole.view.tolist()[i] for i in index]
    assert part.targets.tolist() == [whole.targets.tolist()[i] for i in index]
    assert (part.labelled.tolist(), part.present["image"].tolist()) == ([True, True], [True, True])
    assert part.domain == [whole.domain[i] for i in index]
    assert part.total_rows == 64, "a term is divided by the rows of the whole step, whatever part of it is looked at"


def test_no_rows_at_all_can_be_selected() -> None:
    assert len(made().select(torch.zeros(4, dtype=torch.bool))) == 0


def test_everything_moves_to_another_device() -> None:
    moved = made().to("meta")
    tensors = [moved.ids, moved.view, moved.targets, moved.labelled, *moved.present.values()]
    text = moved.inputs["text"]
    assert not isinstance(text, Tensor)
    tensors += [moved.inputs["image"], *text.values()]
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert moved.domain == made().domain
    assert {field.name for field in fields(moved) if getattr(moved, field.name) is None} == set()

"""Mixup and CutMix: rows and targets of two, as functions of seed, id and view alone; methods that cannot take them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from facts import raises
from torch import Tensor

from crossdistill import Dataset, InputSpec, NetworkConfig, Recipe, Stage, run
from crossdistill.batch import MISSING_TARGET
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.hidden_labels import hide_labels
from crossdistill.errors import RecipeError
from crossdistill.methods import DKD, KD

ROWS, VIEW = torch.arange(40), torch.arange(40) % 4


def data(**views: object) -> Dataset:
    values = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Dataset.from_arrays(
        "pictures",
        {"image": values},
        torch.arange(60) % 3,
        splits={"train": range(40), "validation": range(40, 50), "test": range(50, 60)},
        input_specs={"image": InputSpec("image", (3, 8, 8))},
        augmentation=Variations.model_validate(views),
    )


def picture(batch: object) -> Tensor:
    return batch.inputs["image"]  # type: ignore[attr-defined,no-any-return]


def test_mixup_adds_parts_of_rows_and_targets() -> None:
    dataset = data(mixup=0.4)
    views = dataset.augmentation
    assert isinstance(views, Variations)
    batch, mix = dataset.batch(ROWS, view=VIEW), views.mix(dataset.splits["train"], ROWS, VIEW)
    plain = dataset.inputs["image"]
    assert isinstance(plain, Tensor)
    assert batch.task == "soft"
    assert batch.targets is not None
    for row in range(40):
        other, part = int(mix.other[row]), float(mix.part[row])
        assert (part == 1) if VIEW[row] == 0 else (0 <= part <= 1)
        assert torch.allclose(picture(batch)[row], part * plain[row] + (1 - part) * plain[other], atol=1e-6)
        wanted = torch.zeros(3)
        wanted[row % 3] += part
        wanted[other % 3] += 1 - part
        assert torch.allclose(batch.targets[row], wanted, atol=1e-6)
    assert len(mix.other.unique()) > 15
    assert float(mix.part[VIEW > 0].std()) > 0.1


def test_cutmix_pastes_a_box_of_the_area_of_its_part() -> None:
    dataset = data(cutmix=1.0)
    views = dataset.augmentation
    assert isinstance(views, Variations)
    batch, mix = dataset.batch(ROWS, view=VIEW), views.mix(dataset.splits["train"], ROWS, VIEW)
    plain = dataset.inputs["image"]
    assert isinstance(plain, Tensor)
    areas = []
    assert batch.targets is not None
    labels = torch.as_tensor(dataset.targets)
    for row in range(40):
        wanted = torch.zeros(3)
        top, left, tall, wide = mix.box[row].tolist()
        for y in range(8):
            for x in range(8):
                inside = top <= (y + 0.5) / 8 < top + tall and left <= (x + 0.5) / 8 < left + wide
                source = int(mix.other[row]) if inside else row
                assert torch.equal(picture(batch)[row, :, y, x], plain[source, :, y, x])
                wanted[labels[source]] += 1 / 64
        assert torch.allclose(batch.targets[row], wanted, atol=1e-6)
        areas.append(abs(tall * wide - (1 - float(mix.part[row]))))
    assert max(areas) < 1e-5
    both = data(cutmix=1.0, mixup=1.0).augmentation
    assert isinstance(both, Variations)
    boxes = both.mix(torch.arange(40), torch.arange(400), torch.ones(400, dtype=torch.int64)).box[:, 0].isnan()
    assert 150 < int(boxes.sum()) < 250


def test_a_row_is_mixed_the_same_whatever_batch_it_is_in() -> None:
    dataset = data(mixup=0.4, cutmix=1.0, inputs={"image": Variation(crop=2, flip=True)})
    whole, rows = dataset.batch(ROWS, view=VIEW), torch.tensor([31, 2, 7])
    part = dataset.batch(rows, view=VIEW[rows])
    assert torch.equal(picture(part), picture(whole)[rows])
    assert part.targets is not None
    assert whole.targets is not None
    assert torch.equal(part.targets, whole.targets[rows])
    assert dataset.batch(ROWS).task == "classes", "validation and test rows have no view"
    assert dataset.batch(ROWS, view=torch.zeros_like(ROWS)).task == "classes"


def test_own_targets_stay_with_the_larger_part() -> None:
    dataset = data(mixup=0.4, mixed_targets="own")
    views = dataset.augmentation
    assert isinstance(views, Variations)
    batch, mix = dataset.batch(ROWS, view=VIEW), views.mix(dataset.splits["train"], ROWS, VIEW)
    assert batch.task == "classes"
    assert torch.equal(batch.targets, ROWS % 3)  # type: ignore[arg-type]
    assert float(mix.part.min()) >= 0.5


def test_targets_that_are_missing_or_hidden_stay_so_in_a_mix() -> None:
    dataset = data(mixup=1.0)
    targets = dataset.targets.clone()
    targets[:10] = MISSING_TARGET
    dataset = hide_labels(replace(dataset, targets=targets), 0.5)
    views = dataset.augmentation
    assert isinstance(views, Variations)
    assert dataset.labelled is not None
    batch, other = dataset.batch(ROWS, view=VIEW), views.mix(dataset.splits["train"], ROWS, VIEW).other
    mixed = VIEW > 0
    known = targets[ROWS] != MISSING_TARGET
    both = known & torch.where(mixed, targets[other] != MISSING_TARGET, known)
    assert torch.equal(batch.has_target()[mixed], both[mixed])
    student = dataset.labelled[ROWS] & (dataset.labelled[other] | ~mixed)
    assert torch.equal(batch.student_rows()[mixed], (both & student)[mixed])


@pytest.mark.parametrize("source", ["live", "banked"])
def test_kd_learns_from_mixed_rows_and_banks_hold_them(source: str, tmp_path: Path) -> None:
    dataset = data(mixup=0.4, cutmix=1.0, views=2, inputs={"image": Variation(crop=1)})
    network = NetworkConfig(model="cifar-resnet8")
    stages = (
        Stage(method="supervised", epochs=1, learner="big", teachers=()),
        Stage(method=KD(), epochs=1, source=source),  # type: ignore[arg-type]
    )
    recipe = Recipe(name="mixed", data=dataset, student=network, teachers={"big": network}, stages=stages)
    report = run(recipe, tmp_path / "out", progress=False)
    assert len(report.rows) >= 3


def test_a_method_for_classes_refuses_mixed_targets_with_an_offer(tmp_path: Path) -> None:
    network = NetworkConfig(model="cifar-resnet8")

    def recipe(**views: object) -> Recipe:
        stages = (Stage(method=DKD(), epochs=1),)
        return Recipe(name="mixed", data=data(**views), student=network, teachers={"big": network}, stages=stages)

    with raises(RecipeError, "dkd", "data.augmentation.cutmix", "data.augmentation.mixed_targets=own"):
        run(recipe(cutmix=1.0), tmp_path / "refused", progress=False)
    run(recipe(cutmix=1.0, mixed_targets="own"), tmp_path / "own", progress=False)

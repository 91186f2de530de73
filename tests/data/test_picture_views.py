"""Changes of pictures against slow accounts of one picture: crops, parts, RandAugment as Pillow has it, cutout."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from crossdistill import Dataset, InputSpec
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.file_source import FileSource
from crossdistill.data.folder import FolderConfig
from crossdistill.data.picture_form import pictures_of, values_of
from crossdistill.data.picture_views import CUTOUT_FILL, parts
from crossdistill.data.prepare import limits, mean_and_deviation
from crossdistill.data.rand_augment import OPERATIONS, rand_augmented
from crossdistill.data.rendering import PictureRendering
from crossdistill.data.row_random import RowRandom
from crossdistill.data.workers import Request
from crossdistill.errors import SettingError
from crossdistill.runtime.hashing import derived_seed

IDS = torch.arange(12)
VIEW = torch.arange(12) % 3 + 1


def pictures(channels: int = 3, side: tuple[int, int] = (13, 17)) -> Tensor:
    """Smooth colours with a few edges and constant channels, as fractions of whole bytes."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(12, channels, 4, 5, generator=generator)
    made = torch.nn.functional.interpolate(small, side, mode="bilinear", align_corners=True)
    made[:, :, 3:6, 2:9] = torch.rand(12, channels, 1, 1, generator=generator)
    made[0, 0], made[1] = 0.5, 0.2
    return (made * 255).round() / 255


def varied(change: Variation, value: Tensor) -> Tensor:
    return Variations(inputs={"x": change})({"x": value}, IDS, VIEW)["x"]  # type: ignore[return-value]


def random_of(what: str) -> RowRandom:
    return RowRandom(derived_seed("view", 0, "x", what), IDS, VIEW)


def test_a_crop_is_cut_out_of_a_black_margin() -> None:
    given, by = pictures(), random_of("crop").uniform(2)
    found, seen = varied(Variation(crop=2), given), set()
    for row in range(12):
        down, right = int(by[row, 0] * 5) - 2, int(by[row, 1] * 5) - 2
        seen.add((down, right))
        for y in range(13):
            for x in range(17):
                there = 0 <= y + down < 13 and 0 <= x + right < 17
                wanted = given[row, :, y + down, x + right] if there else torch.zeros(3)
                assert torch.equal(found[row, :, y, x], wanted)
    assert len(seen) > 6


def test_black_is_black_before_the_normalisation() -> None:
    raw = pictures()
    rendering = PictureRendering(size=(13, 17), mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4))
    specs = [
        rendering.spec(rendering.shape),
        InputSpec("image", (3, 13, 17), {"normalisation": mean_and_deviation(0.4, 0.2)}),
        InputSpec("image", (3, 13, 17), {"normalisation": limits(0.1, 0.6)}),
    ]
    cropped = varied(Variation(crop=4), raw)
    for spec in specs:
        values = values_of(raw, spec, raw)
        assert torch.allclose(pictures_of(values, spec), raw, atol=1e-6)
        data = Dataset.from_arrays(
            "x",
            {"x": values},
            [0, 1] * 6,
            input_specs={"x": spec},
            splits={"train": range(8), "validation": [8, 9], "test": [10, 11]},
            augmentation=Variations(inputs={"x": Variation(crop=4)}),
        )
        read = data.batch(IDS, view=VIEW).inputs["x"]
        assert isinstance(read, Tensor)
        assert torch.allclose(pictures_of(read, spec), cropped, atol=1e-6)
    whole = (raw * 255).to(torch.uint8)
    assert torch.equal(varied(Variation(crop=4), whole), (cropped * 255).round().to(torch.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str, channels: int) -> None:
    operation = OPERATIONS[name]
    magnitude = torch.linspace(operation.low, operation.high, 12, dtype=torch.float64)
    magnitude[3] = operation.low + 0.371 * (operation.high - operation.low)
    given = (pictures(channels).double() * 255).round()
    found = operation.change(given.clone(), magnitude)
    wanted = np.stack([pillow(name, given[row], float(magnitude[row])) for row in range(12)])
    different = np.abs(found.numpy() - wanted)
    if name.startswith(("rotate", "shear", "translate")):
        # Pillow maps places in fixed point: a pixel at the border of two others may be either.
        assert (different > 1).mean() < 0.01
    else:
        assert different.max() <= 1
        assert (different > 0).mean() < 0.002


def pillow(name: str, picture: Tensor, v: float) -> np.ndarray:
    array = picture.to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if len(picture) == 1 else array)
    width, height = image.size
    enhanced = {"brightness": "Brightness", "colour": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
    matrices = {
        "shear-x": (1, v, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, v, 1, 0),
        "translate-x": (1, 0, v * width, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, v * height),
    }
    if name in enhanced:
        made = getattr(ImageEnhance, enhanced[name])(image).enhance(v)
    elif name in matrices:
        made = image.transform(image.size, Image.Transform.AFFINE, matrices[name])
    elif name == "rotate":
        made = image.rotate(v)
    elif name == "posterize":
        made = ImageOps.posterize(image, int(v))
    elif name == "solarize":
        made = ImageOps.solarize(image, v)  # type: ignore[arg-type]
    else:
        made = {"auto-contrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "identity": lambda one: one}[
            name
        ](image)
    result = np.asarray(made)
    return result[None] if result.ndim == 2 else result.transpose(2, 0, 1)


def test_each_picture_has_its_own_operations() -> None:
    given = pictures()
    found, drawn = varied(Variation(rand_augment=2), given), random_of("rand_augment").uniform(2, 2).double()
    names, seen = list(OPERATIONS), set()
    for row in range(12):
        one = (given[row : row + 1].double() * 255).round()
        for number in range(2):
            operation = OPERATIONS[names[int(drawn[row, number, 0] * 14)]]
            seen.add(operation)
            one = operation.change(
                one, operation.low + drawn[row, number : number + 1, 1] * (operation.high - operation.low)
            )
        assert torch.allclose(found[row], (one[0] / 255).float(), atol=1e-6)
    assert len(seen) > 6
    alone = rand_augmented(given[4:5], 2, RowRandom(derived_seed("view", 0, "x", "rand_augment"), IDS[4:5], VIEW[4:5]))
    assert torch.equal(alone[0], found[4])


def test_a_square_is_cut_out() -> None:
    given, drawn = pictures(), random_of("cutout").uniform(3)
    found, hidden = varied(Variation(cutout=0.8), given), 0
    for row in range(12):
        side = float(drawn[row, 0]) * 0.8 * 13
        for y in range(13):
            for x in range(17):
                away = max(abs(y + 0.5 - float(drawn[row, 1]) * 13), abs(x + 0.5 - float(drawn[row, 2]) * 17))
                inside = away < side / 2
                hidden += inside
                wanted = torch.tensor(CUTOUT_FILL) if inside else given[row, :, y, x]
                assert torch.allclose(found[row, :, y, x], wanted, atol=1e-6)
    assert hidden > 100
    grey = varied(Variation(cutout=1.0), pictures(1))
    assert bool(torch.isclose(grey, torch.tensor(sum(CUTOUT_FILL) / 3), atol=1e-6).any())


def test_parts_have_the_area_and_ratio_that_was_drawn() -> None:
    many = RowRandom(1, torch.arange(4000))
    boxes = parts(torch.tensor([[50.0, 50.0]]).expand(4000, 2), 0.2, many)
    top, left, height, width = boxes.unbind(1)
    assert bool((top >= 0).all() and (left >= 0).all() and (top + height <= 50).all() and (left + width <= 50).all())
    area, ratio = height * width / 2500, width / height
    assert 0.19 < float(area.min()) < 0.25
    assert 0.95 < float(area.max()) <= 1
    assert 0.5 < float(area.mean()) < 0.6, "between 0.2 and 1, less often the largest, which seldom fit"
    assert 0.7 < float(ratio.min()) < 0.8
    assert 1.25 < float(ratio.max()) < 1.4
    # No part of this area and ratio fits into a line: the largest square of its middle.
    assert parts(torch.tensor([[2.0, 90.0]]), 0.9, RowRandom(0, torch.tensor([0])))[0].tolist() == [0, 44, 2, 2]


def test_a_part_is_resized() -> None:
    given = pictures()
    found = varied(Variation(resized_crop=0.3), given)
    boxes = parts(torch.tensor([[13.0, 17.0]]).expand(12, 2), 0.3, random_of("resized_crop"))
    for row, (top, left, tall, wide) in enumerate(boxes.long().tolist()):
        part = given[row : row + 1, :, top : top + tall, left : left + wide]
        wanted = torch.nn.functional.interpolate(part, (13, 17), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(found[row], wanted, atol=1e-5)


def test_a_part_of_a_file_is_cut_out_of_the_whole_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(12):
        (tmp_path / f"class{row % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40 + row, 60, 3), dtype=np.uint8)).save(
            tmp_path / f"class{row % 2}" / f"{row:02}.png"
        )
    views = Variations(inputs={"image": Variation(resized_crop=0.3, flip=True)}, mixup=0.5)
    config = FolderConfig(path=tmp_path, size=(16, 16), workers=0, augmentation=views.model_copy(update={"mixup": 0.0}))
    data = config.load()
    source = data.inputs["image"]
    assert isinstance(source, FileSource)
    assert isinstance(source.rendering, PictureRendering)
    rows, view = torch.tensor([3, 5, 8]), torch.tensor([1, 0, 2])
    read = data.batch(rows, view=view).inputs["image"]
    assert isinstance(read, Tensor)
    flips = RowRandom(derived_seed("view", 0, "image", "flip"), rows, view).uniform(1)[:, 0] < 0.5
    sizes = torch.tensor([source.files.shape(row)[1:] for row in rows.tolist()]).float()
    boxes = parts(sizes, 0.3, RowRandom(derived_seed("view", 0, "image", "resized_crop"), rows, view)).long()
    for number, row in enumerate(rows.tolist()):
        whole = source.files.decoded([row])[0]
        top, left, tall, wide = boxes[number].tolist() if view[number] else (0, 0, *whole.shape[1:])
        rendering = source.rendering.model_copy(update={"shortest": None})
        if not view[number]:
            rendering = source.rendering
        wanted = rendering.apply(whole[:, top : top + tall, left : left + wide])
        assert torch.equal(read[number], wanted.flip(-1) if view[number] and flips[number] else wanted)
    # Workers read the same, also of the rows that these are mixed with.
    mixing = config.model_copy(update={"augmentation": views})
    alone, helped = mixing.load(), mixing.model_copy(update={"workers": 1}).load()
    request = Request(rows, view=view)
    one, two = (next(iter(data.batches([request], torch.device("cpu")))) for data in (alone, helped))
    assert torch.equal(one.inputs["image"], two.inputs["image"])  # type: ignore[arg-type]
    assert one.total_rows == two.total_rows == 3


def test_settings_that_do_not_fit_are_faults() -> None:
    value = {"image": torch.rand(4, 3, 8, 8), "sound": torch.rand(4, 1, 50)}
    wrong = Variations(inputs={"sound": Variation(crop=2, cutout=0.5)}, cutmix=1.0)
    said = wrong.faults(value)
    assert len(said) == 2
    assert "crop, cutout" in said[1]
    assert "(1, 50)" in said[0]
    with raises(SettingError, "rand_augment", "(5,)"):
        Dataset.from_arrays(
            "x", {"x": torch.rand(30, 5)}, [0, 1] * 15, augmentation=Variations(inputs={"x": Variation(rand_augment=2)})
        )


def test_keys_differ_by_every_change() -> None:
    changes = [
        Variation(),
        Variation(crop=1),
        Variation(resized_crop=0.5),
        Variation(rand_augment=1),
        Variation(cutout=0.5),
    ]
    settings = [Variations(inputs={"x": change}) for change in changes]
    settings += [Variations(mixup=0.2), Variations(mixup=0.2, mixed_targets="own"), Variations(cutmix=0.2)]
    assert len({one.key for one in settings}) == len(settings)
    assert math.isclose(sum(CUTOUT_FILL), 362 / 255)


def test_a_picture_is_turned_around_its_middle() -> None:
    given = pictures()
    found, angle = varied(Variation(rotate=20.0), given), 20 * (2 * random_of("rotate").uniform(1)[:, 0].double() - 1)
    wanted = OPERATIONS["rotate"].change((given.double() * 255).round(), angle) / 255
    assert torch.allclose(found, wanted.float(), atol=1e-6)
    assert float(angle.abs().max()) > 10

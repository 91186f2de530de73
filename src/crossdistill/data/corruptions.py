"""Corruptions of pictures in five severities, after CIFAR-10-C: noise, blur and digital ones, seeded by row.

Amounts are those of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019), in pixels of a side of 32; for larger pictures
lengths grow with the shorter side. The pictures are generated here, so they are not those of the published files:
motion blur is a half Gaussian along a line, glass blur exchanges pixels in both directions. Weather (snow, frost, fog,
spatter) is left out, because no library that this package keeps draws it.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.dataset import Dataset
from crossdistill.data.picture_filters import bent, blurred, defocused, moved, shuffled, zoomed
from crossdistill.data.picture_form import bytes_of, pictures_of, values_of
from crossdistill.data.rendering import PictureRendering, Rendering
from crossdistill.data.row_random import RowRandom
from crossdistill.data.row_source import Rows, read_rows
from crossdistill.errors import DataError, MissingExtraError, SettingError, ShapeError, nearest
from crossdistill.runtime.hashing import derived_seed, key_hash

SIDE = 32
"""Side of the pictures that amounts in pixels are for."""
SEVERITIES = 5
BYTES = 255.0

Pictures = Float[Tensor, "B C H W"]
Change = Callable[[Pictures, Any, float, RowRandom], Pictures]
"""Changed pictures from an amount, the scale of lengths, and the random numbers of each picture."""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A change, and its amount at each of the five severities."""

    change: Change
    amounts: tuple[Any, ...]


def corrupted(pictures: Pictures, name: str, severity: int, ids: Int64[Tensor, " B"], seed: int = 0) -> Pictures:
    """Pictures of 0 to 1 with a corruption of `CORRUPTIONS`, of severity 1 to 5.

    Each picture depends on its own values, its id, the name and the seed; a greater severity has the same random
    numbers. The result is rounded to bytes, as a stored picture is.

    Raises:
        SettingError: there is no such corruption (names the nearest) or severity.
        ShapeError: other shapes than (B, 1 or 3, H, W).
        MissingExtraError: Pillow is not installed, which jpeg-compression and pixelate need.
    """
    if name not in TABLE:
        raise SettingError(f"no corruption is called {name!r}; {nearest(name, TABLE)}")
    if severity not in range(1, SEVERITIES + 1):
        raise SettingError(f"corruption {name}: severity={severity}; wanted 1 to {SEVERITIES}")
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or len(ids) != len(pictures):
        raise ShapeError(
            f"corruption {name}: pictures {tuple(pictures.shape)} with {len(ids)} ids; wanted (B, 1 or 3, H, W)"
        )
    found, scale = TABLE[name], min(pictures.shape[-2:]) / SIDE
    random = RowRandom(derived_seed("corruption", seed, name), ids)
    changed = found.change(pictures.cpu().float(), found.amounts[severity - 1], max(1.0, scale), random)
    return ((changed.clamp(0, 1) * BYTES).round() / BYTES).to(pictures)


def _shot(pictures: Pictures, photons: float, scale: float, random: RowRandom) -> Pictures:
    counts = [
        np.random.default_rng(key).poisson(photons * picture.clamp(min=0).double().numpy())
        for picture, key in zip(pictures, random.whole().tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(counts)).float() / photons if counts else pictures


def _impulse(pictures: Pictures, part: float, scale: float, random: RowRandom) -> Pictures:
    drawn = random.uniform(*pictures.shape[1:])
    return torch.where(drawn < part / 2, 0.0, torch.where(drawn >= 1 - part / 2, 1.0, pictures))


def _glass(pictures: Pictures, amount: tuple[float, int, int], scale: float, random: RowRandom) -> Pictures:
    sigma, reach, rounds = amount
    mixed = shuffled(blurred(pictures, sigma * scale), max(1, round(reach * scale)), rounds, random)
    return blurred(mixed, sigma * scale)


def _contrast(pictures: Pictures, part: float, scale: float, random: RowRandom) -> Pictures:
    mean = pictures.mean((2, 3), keepdim=True)
    return mean + part * (pictures - mean)


def _brightness(pictures: Pictures, added: float, scale: float, random: RowRandom) -> Pictures:
    """A larger value (of hue, saturation, value): all channels grow by one factor."""
    value = pictures.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, pictures * brighter / value.clamp(min=1e-12), brighter)


def _saturate(pictures: Pictures, amount: tuple[float, float], scale: float, random: RowRandom) -> Pictures:
    """A saturation of factor · s + term (of hue, saturation, value); the hue of grey is red, and grey stays it at 0."""
    if pictures.shape[1] == 1:
        return pictures
    value = pictures.amax(1, keepdim=True)
    spread = value - pictures.amin(1, keepdim=True)
    saturation = spread / value.clamp(min=1e-12)
    wanted = (amount[0] * saturation + amount[1]).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    below = torch.where(spread > 0, (value - pictures) / spread.clamp(min=1e-12), red)
    return value * (1 - wanted * below)


def _jpeg(pictures: Pictures, quality: int, scale: float, random: RowRandom) -> Pictures:
    def stored(picture: Any) -> Any:
        from PIL import Image

        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality)
        return Image.open(content)

    return _by_pillow(pictures, stored)


def _pixelate(pictures: Pictures, part: float, scale: float, random: RowRandom) -> Pictures:
    height, width = pictures.shape[-2:]
    small = max(1, int(width * part)), max(1, int(height * part))

    def resized(picture: Any) -> Any:
        from PIL import Image

        box = Image.Resampling.BOX
        return picture.resize(small, box).resize((width, height), box)

    return _by_pillow(pictures, resized)


def _by_pillow(pictures: Pictures, change: Callable[[Any], Any]) -> Pictures:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("corrupting pictures", "pillow", "image") from error
    grey = pictures.shape[1] == 1
    changed = torch.empty_like(pictures)
    for row, array in enumerate((pictures * BYTES).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        made = np.asarray(change(Image.fromarray(array[..., 0] if grey else array)), dtype=np.float32) / BYTES
        changed[row] = torch.from_numpy(made[None] if grey else made.transpose(2, 0, 1).copy())
    return changed


def _noise(pictures: Pictures, deviation: float, scale: float, random: RowRandom) -> Pictures:
    return pictures + deviation * random.normal(*pictures.shape[1:])


def _speckle(pictures: Pictures, deviation: float, scale: float, random: RowRandom) -> Pictures:
    return pictures + pictures * deviation * random.normal(*pictures.shape[1:])


def _gaussian_blur(pictures: Pictures, sigma: float, scale: float, random: RowRandom) -> Pictures:
    return blurred(pictures, sigma * scale)


def _defocus(pictures: Pictures, amount: tuple[float, float], scale: float, random: RowRandom) -> Pictures:
    return defocused(pictures, amount[0] * scale, amount[1])


def _motion(pictures: Pictures, amount: tuple[int, float], scale: float, random: RowRandom) -> Pictures:
    return moved(pictures, round(2 * amount[0] * scale), amount[1] * scale, random)


def _zoom(pictures: Pictures, most: float, scale: float, random: RowRandom) -> Pictures:
    return zoomed(pictures, [1 + step / 100 for step in range(round(100 * (most - 1)) + 1)])


def _elastic(pictures: Pictures, amount: tuple[float, float, float], scale: float, random: RowRandom) -> Pictures:
    strength, sigma, corner = (SIDE * part * scale for part in amount)
    return bent(pictures, strength, sigma, corner, random)


TABLE: Mapping[str, Corruption] = {
    "gaussian-noise": Corruption(_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": Corruption(_shot, (500.0, 250.0, 100.0, 75.0, 50.0)),
    "impulse-noise": Corruption(_impulse, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle-noise": Corruption(_speckle, (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian-blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus-blur": Corruption(_defocus, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "glass-blur": Corruption(_glass, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion-blur": Corruption(_motion, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
    "zoom-blur": Corruption(_zoom, (1.05, 1.10, 1.15, 1.20, 1.25)),
    "brightness": Corruption(_brightness, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": Corruption(_contrast, (0.75, 0.50, 0.40, 0.30, 0.15)),
    "saturate": Corruption(_saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
    "elastic-transform": Corruption(
        _elastic, ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    ),
    "pixelate": Corruption(_pixelate, (0.95, 0.90, 0.85, 0.75, 0.65)),
    "jpeg-compression": Corruption(_jpeg, (80, 65, 58, 50, 40)),
}
CORRUPTIONS = tuple(TABLE)
"""Names of the corruptions."""


@dataclass(frozen=True, eq=False)
class Corrupted:
    """A row source: the pictures of another input with a corruption, computed when rows are read."""

    values: Rows
    spec: InputSpec
    name: str
    severity: int
    seed: int
    where: str
    content: str
    """A hash of the data that `values` are of."""
    rendering: PictureRendering | None = None
    """A rendering of the corrupted pictures, for networks that read another size or normalisation."""
    base: InputSpec | None = None
    """The format of `values`, where that of the rendering is another."""
    deterministic: bool = True
    in_memory: bool = True
    """Rows are read in this process."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return torch.float32 if self.rendering is not None else self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *example)."""
        return (len(self.values), *self.spec.shape)

    @property
    def fingerprint(self) -> str:
        """A hash of the content and of the corruption."""
        rendering = None if self.rendering is None else self.rendering.key
        return key_hash(["corrupted", self.content, self.where, self.name, self.severity, self.seed, rendering])

    def fetch(self, rows: Int64[Tensor, " B"]) -> Tensor:
        """Corrupted rows, of the form of the others."""
        values = read_rows(self.values, rows, self.where)
        base = self._base()
        assert isinstance(values, Tensor)
        made = corrupted(pictures_of(values, base), self.name, self.severity, rows, self.seed)
        changed = values_of(made, base, values)
        return changed if self.rendering is None else self.rendering.apply(bytes_of(changed, base))

    def rendered(self, rendering: Rendering) -> "Corrupted":
        """The corrupted pictures in another rendering.

        Raises:
            DataError: it is no rendering of pictures.
        """
        if not isinstance(rendering, PictureRendering):
            raise DataError(f"{self.where}: pictures take a PictureRendering, found a {type(rendering).__name__}")
        return replace(self, spec=rendering.spec(rendering.shape), rendering=rendering, base=self._base())

    def _base(self) -> InputSpec:
        return self.base or self.spec


def corrupted_data(dataset: Dataset, name: str, severity: int, seed: int = 0) -> Dataset:
    """The same data with every picture corrupted, those of all splits; a rendering reads the corrupted picture.

    Raises:
        SettingError: there is no such corruption or severity.
        DataError: the data have no pictures (1 or 3, height, width).
    """
    found: dict[str, Any] = {}
    for modality, values in dataset.inputs.items():
        spec = dataset.input_specs[modality]
        if spec.kind == "image" and len(spec.shape) == 3 and "@" not in modality:
            where = f"dataset {dataset.name!r}: {modality!r}"
            found[modality] = Corrupted(values, spec, name, severity, seed, where, dataset.fingerprint)
    if not found:
        kinds = ", ".join(f"{name} ({spec.kind})" for name, spec in dataset.input_specs.items())
        raise DataError(f"data {dataset.name!r} have no pictures (1 or 3, height, width) to corrupt: {kinds}")
    for modality, values in dataset.inputs.items():
        base, _, rendering = modality.partition("@")
        if rendering and base in found:
            own = getattr(values, "rendering", None)
            found[modality] = found[base].rendered(own)
    # One row shows wrong names before anything is computed.
    first = next(iter(found.values()))
    first.fetch(torch.zeros(1, dtype=torch.int64))
    fingerprint = key_hash([dataset.fingerprint, "corrupted", name, severity, seed])
    inputs = {**dataset.inputs, **found}
    return replace(dataset, inputs=inputs, fingerprint=fingerprint, sample="", augmentation=None)

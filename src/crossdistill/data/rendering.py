"""Renderings: how one decoded picture, sound, text or array becomes the input of a network, as typed settings.

A modality may have several (`image`, `image@clip`): one file is decoded once, and each network reads it at its own
resolution, rate and normalisation.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from torch import Tensor

from crossdistill.batch import Input, InputSpec
from crossdistill.data.audio.sound import MelSettings, log_mel
from crossdistill.data.audio.sound_file import resample
from crossdistill.data.input_options import HIGHEST_RATE, LOWEST_RATE, MOST_BINS, MOST_FILTERS, MOST_SAMPLES
from crossdistill.data.prepare import fit_length, in_channels, padded
from crossdistill.data.tokens import Tokens, parse_tokenizer, read_tokenizer
from crossdistill.errors import DataError
from crossdistill.runtime.hashing import key_hash

OPTION = "rendering"
"""The option of an `InputSpec` that holds a rendering's settings."""
TOKENIZER = "tokenizer"
"""Name of the tokenizer's content among an `InputSpec`'s fitted tensors."""
MOST_SIDE = 8192

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Sound(NamedTuple):
    """A decoded recording: mono samples in [-1, 1] (n,), and their rate in hertz."""

    wave: Float[Tensor, " n"]
    rate: int


class _Rendering(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    version: ClassVar[int] = 1
    """Rises when equal settings give other numbers: it is a part of `key`."""

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on, besides the decoded file."""
        return key_hash([self.version, self.model_dump(mode="json")])

    @property
    def input_kind(self) -> str:
        """The `InputSpec.kind` of the result."""
        return "array"

    def spec(self, shape: tuple[int, ...]) -> InputSpec:
        """The specification of the rendered input, from which a saved student reads files."""
        return InputSpec(self.input_kind, shape, {OPTION: self.model_dump(mode="json")})


class PictureRendering(_Rendering):
    """A picture, resized, cropped in its middle, scaled and normalised.

    Without `shortest` it is resized to `size` whatever its proportions. With it, the shorter side is resized to
    `shortest`, the longer one in proportion (rounded down, as in torchvision and Transformers), and the middle is kept;
    `both_sides` resizes both to `shortest` first.
    """

    type: Literal["picture"] = "picture"
    size: tuple[Annotated[int, Field(ge=1, le=MOST_SIDE)], Annotated[int, Field(ge=1, le=MOST_SIDE)]] = Field(
        description="height and width of the result, in pixels"
    )
    shortest: int | None = Field(
        default=None, ge=1, le=MOST_SIDE, description="shorter side before the middle is cut out; null: no crop"
    )
    both_sides: bool = Field(default=False, description="resize both sides to `shortest`, whatever the proportions")
    interpolation: Literal["nearest", "bilinear", "bicubic", "area"] = "bilinear"
    antialias: bool = Field(default=True, description="smooth before shrinking, as Pillow does (bilinear, bicubic)")
    rounded: bool = Field(
        default=False, description="round resized values to whole numbers of 0 to 255, as Pillow does"
    )
    rescale: Finite = Field(default=1 / 255, description="factor of the values 0 to 255")
    mean: tuple[Finite, ...] = Field(default=(), description="subtracted after scaling: one number, or one a channel")
    deviation: tuple[Positive, ...] = Field(default=(), description="divided by afterwards: one, or one a channel")
    channels: Literal[1, 3] = Field(default=3, description="3: red, green and blue; 1: grey")

    @model_validator(mode="after")
    def _fits(self) -> "PictureRendering":
        if self.shortest is not None and self.shortest < max(self.size):
            raise ValueError(f"shortest={self.shortest} is less than a side of size={list(self.size)}")
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) not in (0, 1, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers, for {self.channels} channels")
        return self

    @model_serializer(mode="wrap")
    def _shortly(self, write: Callable[["PictureRendering"], dict[str, Any]]) -> dict[str, Any]:
        """Without a setting that came later, where it is not used: keys of before stay equal."""
        settings = write(self)
        return settings if self.both_sides else {name: v for name, v in settings.items() if name != "both_sides"}

    @property
    def input_kind(self) -> str:
        """The `InputSpec.kind` of the result."""
        return "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result without a batch dimension."""
        return (self.channels, *self.size)

    def apply(self, decoded: Tensor) -> Float[Tensor, "*batch C H W"]:
        """A decoded picture (..., 1 or 3, h, w), bytes or floating point of 0 to 255, as float32."""
        picture = decoded if decoded.ndim == 4 else decoded[None]
        # Grey before resizing: a third of the work.
        values = in_channels(picture.float(), self.channels)
        values = self._cut(self._resized(values)) * self.rescale
        if self.mean:
            values = values - torch.tensor(self.mean)[:, None, None]
        if self.deviation:
            values = values / torch.tensor(self.deviation)[:, None, None]
        return values if decoded.ndim == 4 else values[0]

    def apply_all(self, decoded: Sequence[Tensor]) -> Tensor:
        """Decoded pictures of any sizes as one batch, channels last in memory: a CPU convolves that faster."""
        result = torch.empty(len(decoded), *self.shape, memory_format=torch.channels_last)
        for rows in _alike([(*picture.shape, picture.dtype) for picture in decoded]):
            result[rows] = self.apply(torch.stack([decoded[row] for row in rows]))
        return result

    def _resized(self, values: Float[Tensor, "B C h w"]) -> Tensor:
        height, width = values.shape[-2:]
        wanted = self.size
        if self.shortest is not None and self.both_sides:
            wanted = (self.shortest, self.shortest)
        elif self.shortest is not None:
            short, long = sorted((height, width))
            other = int(self.shortest * long / short)
            wanted = (self.shortest, other) if height <= width else (other, self.shortest)
        if wanted == (height, width):
            return values
        if self.interpolation in ("bilinear", "bicubic"):
            resized = torch.nn.functional.interpolate(
                values, wanted, mode=self.interpolation, align_corners=False, antialias=self.antialias
            )
        else:
            mode = "nearest-exact" if self.interpolation == "nearest" else "area"
            resized = torch.nn.functional.interpolate(values, wanted, mode=mode)
        # Bicubic interpolation overshoots at edges.
        resized = resized.clamp(0, 255)
        return resized.round() if self.rounded else resized

    def _cut(self, values: Tensor) -> Tensor:
        height, width = self.size
        top, left = (values.shape[-2] - height) // 2, (values.shape[-1] - width) // 2
        return values[..., top : top + height, left : left + width]


class SoundRendering(_Rendering):
    """A recording at a rate, of a length, as a waveform or a log-mel spectrogram.

    Longer recordings are cut and shorter ones padded with silence, so that the middle (`align` "start": the beginning)
    stays. Without `seconds` the length varies, and rows are padded: {"values", "lengths"}, in samples or frames.
    """

    type: Literal["sound"] = "sound"
    rate: int = Field(ge=LOWEST_RATE, le=HIGHEST_RATE, description="samples a second")
    kind: Literal["wave", "log-mel"] = "log-mel"
    seconds: Positive | None = Field(default=None, description="length of the input; null: as long as the recording")
    align: Literal["middle", "start"] = Field(default="middle", description="part of a recording that stays")
    n_fft: int = Field(default=1024, ge=2, le=2**18)
    hop: int = Field(default=256, ge=1, le=2**20)
    bands: int = Field(default=64, ge=1, le=4096)
    top_db: Positive | None = Field(default=80.0, description="range below the loudest point of an example, decibels")
    normalise: Literal["none", "mean", "example"] = Field(
        default="none", description="each waveform to mean 0; example: and to variance 1, as wav2vec 2.0 reads it"
    )
    mean: Finite = Field(default=0.0, description="subtracted from waveform or decibels")
    deviation: Positive = Field(default=1.0, description="divided by afterwards")

    @model_validator(mode="after")
    def _bounded(self) -> "SoundRendering":
        samples = self.samples or 0
        frames, bins = 1 + samples // self.hop, self.n_fft // 2 + 1
        if samples > MOST_SAMPLES or frames * bins > MOST_BINS or self.bands * bins > MOST_FILTERS:
            raise ValueError(f"{samples:,} samples, {bins:,} frequencies, {frames:,} frames and {self.bands:,} bands")
        return self

    @property
    def input_kind(self) -> str:
        """The `InputSpec.kind` of the result."""
        return self.kind

    @property
    def samples(self) -> int | None:
        """Length of the input in samples; None: it varies."""
        return None if self.seconds is None else max(1, round(self.seconds * self.rate))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result without a batch dimension; of a length that varies, with 0 for it."""
        samples = self.samples
        if self.kind == "wave":
            return (samples or 0,)
        return (1, self.bands, 0 if samples is None else 1 + samples // self.hop)

    def apply(self, decoded: Sound) -> Tensor:
        """A decoded recording as a waveform (samples,) or a spectrogram (1, bands, frames), float32."""
        return self._rendered(self._wave(decoded)[None])[0]

    def apply_all(self, decoded: Sequence[Sound]) -> Input:
        """Decoded recordings as one batch; those of one length are computed together."""
        waves = [self._wave(sound) for sound in decoded]
        if self.samples is not None:
            return self._rendered(torch.stack(waves)) if waves else torch.empty(0, *self.shape)
        return padded([self._rendered(wave[None])[0] for wave in waves])

    def _wave(self, sound: Sound) -> Float[Tensor, " samples"]:
        wave = sound.wave
        if sound.rate != self.rate:
            wave = torch.from_numpy(resample(wave.numpy(), sound.rate, self.rate))
        samples = self.samples
        if samples is not None:
            if self.align == "middle":
                wave = fit_length(wave, samples)
            else:
                wave = torch.nn.functional.pad(wave[:samples], (0, max(0, samples - len(wave))))
        if self.normalise == "mean":
            return wave - wave.mean()
        if self.normalise == "example":
            wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
        return wave

    def _rendered(self, waves: Float[Tensor, "B samples"]) -> Tensor:
        if self.kind == "wave":
            return (waves - self.mean) / self.deviation
        settings = MelSettings(self.rate, self.n_fft, self.hop, self.bands, top_db=self.top_db)
        return (log_mel(waves, settings)[:, None] - self.mean) / self.deviation


class TextRendering(_Rendering):
    """A text as token ids and their mask: {"input_ids", "attention_mask"}, both int64 (length,).

    `tokenizer` is a folder with a `tokenizer.json` (as models of Transformers have), or that file; null: the ids are
    the bytes of the UTF-8 text plus one. Longer texts are cut, shorter ones padded at their ends.
    """

    type: Literal["text"] = "text"
    tokenizer: Path | None = Field(default=None, description="folder of a tokenizer; null: bytes")
    length: int = Field(default=64, ge=1, le=2**17, description="tokens")
    pad: int | None = Field(default=None, ge=0, description="id of the padding; null: the tokenizer's, else 0")
    _held: Tokens | None = PrivateAttr(default=None)

    @property
    def input_kind(self) -> str:
        """The `InputSpec.kind` of the result."""
        return "text"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ids of one text."""
        return (self.length,)

    @property
    def key(self) -> str:
        """A hash of the settings and of the tokenizer's content; the place of its folder is no part of it."""
        settings = self.model_dump(mode="json", exclude={"tokenizer"})
        return key_hash([self.version, settings, None if self.tokenizer is None else self.tokens.digest])

    def spec(self, shape: tuple[int, ...]) -> InputSpec:
        """The specification, with the content of the tokenizer: a saved student needs no folder of it."""
        spec = super().spec(shape)
        if self.tokenizer is None:
            return spec
        content = torch.frombuffer(bytearray(self.tokens.content), dtype=torch.uint8)
        options = {OPTION: {**spec.options[OPTION], "tokenizer": TOKENIZER, "pad": self._padding}}
        return InputSpec(spec.kind, spec.shape, options, {TOKENIZER: content})

    def holding(self, content: bytes) -> "TextRendering":
        """The same, with a tokenizer from memory."""
        copy = self.model_copy()
        copy._held = parse_tokenizer(content, "the student's tokenizer")
        return copy

    def apply(self, decoded: str) -> Mapping[str, Tensor]:
        """A text as ids (length,) and mask (length,)."""
        return {name: rows[0] for name, rows in self.apply_all([decoded]).items()}

    def apply_all(self, decoded: Sequence[str]) -> Mapping[str, Tensor]:
        """Texts as one batch."""
        if self.tokenizer is None:
            rows = [[byte + 1 for byte in text.encode()[: self.length]] for text in decoded]
        else:
            rows = self.tokens.ids(decoded, self.length)
        ids = torch.full((len(rows), self.length), self._padding, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return 257 if self.tokenizer is None else self.tokens.size

    @property
    def tokens(self) -> Tokens:
        """The tokenizer, read on first use.

        Raises:
            DataError: the folder has no `tokenizer.json`, or it is damaged.
            MissingExtraError: the package tokenizers is not installed.
        """
        if self._held is None:
            assert self.tokenizer is not None
            self._held = read_tokenizer(self.tokenizer)
        return self._held

    @property
    def _padding(self) -> int:
        if self.pad is not None:
            return self.pad
        return 0 if self.tokenizer is None else self.tokens.pad


class ArrayRendering(_Rendering):
    """Numbers, less a mean and divided by a deviation: one for all, or one for each number of the last dimension."""

    type: Literal["array"] = "array"
    mean: tuple[Finite, ...] = ()
    deviation: tuple[Positive, ...] = ()

    def apply(self, decoded: Tensor) -> Tensor:
        """An array (*shape) as float32."""
        values = decoded.float()
        if self.mean:
            values = values - torch.tensor(self.mean)
        return values / torch.tensor(self.deviation) if self.deviation else values

    def apply_all(self, decoded: Sequence[Tensor]) -> Tensor:
        """Arrays of one shape as one batch."""
        return self.apply(torch.stack(list(decoded)))


Rendering = PictureRendering | SoundRendering | TextRendering | ArrayRendering

_ANY: TypeAdapter[Rendering] = TypeAdapter(Annotated[Rendering, Field(discriminator="type")])


def varies(rendering: Rendering | None) -> bool:
    """Whether the length of the result is that of the recording."""
    return isinstance(rendering, SoundRendering) and rendering.seconds is None


def rendering_of(spec: InputSpec, who: str) -> Rendering | None:
    """The rendering that made an input, from its specification; None: another preparation did.

    Raises:
        DataError: its settings are invalid, or do not fit the input's kind and shape; the text begins with `who`.
    """
    if OPTION not in spec.options:
        return None
    try:
        rendering = _ANY.validate_python(spec.options[OPTION])
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])[:100]
        raise DataError(f"{who}: its rendering cannot be read: {where!r}: {fault['msg']}") from error
    if isinstance(rendering, TextRendering) and rendering.tokenizer is not None:
        if TOKENIZER not in spec.parameters:
            raise DataError(f"{who}: its rendering reads a tokenizer, and none is stored with it")
        rendering = rendering.holding(spec.parameters[TOKENIZER].to(torch.uint8).numpy().tobytes())
    fits = spec.kind == rendering.input_kind
    if not isinstance(rendering, ArrayRendering) and 0 not in rendering.shape:
        fits = fits and tuple(spec.shape) == rendering.shape
    if not fits:
        raise DataError(
            f"{who}: reads {spec.kind!r} {tuple(spec.shape)}, and its rendering makes {rendering.input_kind!r}"
            + ("" if isinstance(rendering, ArrayRendering) else f" {rendering.shape}")
        )
    return rendering


def _alike(keys: Sequence[Hashable]) -> list[list[int]]:
    """The positions of equal keys, in the order of their first."""
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return list(found.values())

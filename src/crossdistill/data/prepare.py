"""Prepares raw pictures and waveforms as network inputs, as described by an `InputSpec`.

Data sets are built with these functions and `decode` reads files with them, so inputs are prepared identically in
training and prediction.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.audio.sound import MelSettings, log_mel
from crossdistill.data.principal import weaken
from crossdistill.errors import ShapeError

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in Pillow (ITU-R 601-2)."""

MIN_MAX = {"kind": "per-sample min-max"}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with one thread of torch: sums depend on the number of threads, and builds must be reproducible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limits(low: float, high: float) -> dict[str, Any]:
    """Options of a normalisation that maps two values, measured on the training split, to 0 and 1."""
    return {"kind": "min-max", "low": low, "high": high}


def mean_and_deviation(mean: float, deviation: float) -> dict[str, Any]:
    """Options of a normalisation by a mean and a standard deviation, measured on the training split."""
    return {"kind": "mean and standard deviation", "mean": mean, "deviation": deviation}


def example_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Accepted shapes of an example: `shape`; for one channel, also without the channel, and flat."""
    return list(dict.fromkeys([shape, shape[1:], (math.prod(shape),)])) if shape[:1] == (1,) else [shape]


def prepare_pictures(pictures: Float[Tensor, "B *shape"], spec: InputSpec) -> Float[Tensor, "B *input"]:
    """Pictures in [0, 1] (B, ...), projected on principal components and normalised if the specification says so.

    Raises:
        ShapeError: pictures of another shape than the input; grey pictures may come without a channel.
    """
    shape = tuple(spec.shape)
    if tuple(pictures.shape[1:]) not in (shape, shape[1:] if shape[:1] == (1,) else shape):
        raise ShapeError(f"pictures are {tuple(pictures.shape[1:])}, but the network reads {shape}")
    flat = pictures.flatten(1)
    if "basis" in spec.parameters:
        flat = weaken(flat, spec.parameters["mean"], spec.parameters["basis"])
    shaped = flat.reshape(len(flat), *shape)
    how = spec.options.get("normalisation")
    return shaped if how is None else normalise(shaped, how)


def prepare_sound(waves: Float[Tensor, "B samples"], spec: InputSpec) -> Float[Tensor, "B 1 bands frames"]:
    """Mono waveforms of the specified length as normalised log-mel spectrograms.

    With the option `level`, each waveform is first scaled to that root mean square.

    Raises:
        ShapeError: waveforms of another length.
    """
    options = spec.options
    if waves.shape[1] != options["samples"]:
        raise ShapeError(f"waveforms have {waves.shape[1]} samples, but the network reads {options['samples']}")
    if options.get("level"):
        waves = waves * (options["level"] / waves.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8))
    decibels = log_mel(waves, mel_settings(options))
    return normalise(decibels[:, None], options["normalisation"])


def mel_settings(options: Mapping[str, Any]) -> MelSettings:
    """The spectrogram that the options of an `InputSpec` describe."""
    return MelSettings(
        sample_rate=options["sample_rate"],
        n_fft=options["n_fft"],
        hop=options["hop"],
        bands=options["bands"],
        top_db=options["top_db"],
    )


def fit_length(wave: Float[Tensor, " samples"], samples: int) -> Float[Tensor, " wanted"]:
    """A waveform of `samples` samples: the middle of a longer one, or a shorter one padded with zeros at both ends."""
    spare = len(wave) - samples
    if spare >= 0:
        return wave[spare // 2 : spare // 2 + samples]
    return torch.nn.functional.pad(wave, (-spare // 2, -spare - (-spare // 2)))


def normalise(values: Float[Tensor, "B *shape"], how: Mapping[str, Any]) -> Float[Tensor, "B *shape"]:
    """Normalise by values measured on the training split, or each example to [0, 1] (a constant one becomes 0)."""
    if how["kind"] == MIN_MAX["kind"]:
        flat = values.flatten(1)
        low = flat.amin(1, keepdim=True)
        span = flat.amax(1, keepdim=True) - low
        return ((flat - low) / torch.where(span > 0, span, 1.0)).reshape(values.shape)
    if how["kind"] == "min-max":
        bottom, top = float(how["low"]), float(how["high"])
        return (values - bottom) / (top - bottom)
    mean, deviation = float(how["mean"]), float(how["deviation"])
    return (values - mean) / deviation


def in_channels(values: Float[Tensor, "B c h w"], channels: int) -> Float[Tensor, "B C h w"]:
    """Pictures in grey (1 channel) or in colours (3)."""
    found = values.shape[1]
    if found == channels:
        return values
    if channels == 3:
        return values.expand(-1, 3, -1, -1)
    grey: Tensor = torch.tensordot(torch.tensor(LUMINANCE), values, ([0], [1]))
    return grey[:, None]


def padded(parts: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Tensors of varying length in their last dimension as one batch, with zeros after their ends, and the lengths."""
    lengths = torch.tensor([part.shape[-1] for part in parts], dtype=torch.int64)
    longest = int(lengths.max())
    values = [torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts]
    return {"values": torch.stack(values), "lengths": lengths}

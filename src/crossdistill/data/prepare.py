"""From raw pictures and waveforms to the tensors of a network, as an `InputSpec` says.

Data sets are built with these functions and `decode` reads files with them, so that a saved student sees at prediction
time what it saw in training.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.audio.sound import MelSettings, log_mel
from crossdistill.data.principal import weaken
from crossdistill.errors import ShapeError

MIN_MAX = {"kind": "per-sample min-max"}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them: on one thread the same data come out of every build."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def limits(low: float, high: float) -> dict[str, Any]:
    """Normalisation that maps two values, measured on the training split, to 0 and 1."""
    return {"kind": "min-max", "low": low, "high": high}


def mean_and_deviation(mean: float, deviation: float) -> dict[str, Any]:
    """Normalisation by two numbers that were measured on the training split."""
    return {"kind": "mean and standard deviation", "mean": mean, "deviation": deviation}


def example_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes in which an example of an array may come: as it is and, of one channel, without it, or in one row."""
    return list(dict.fromkeys([shape, shape[1:], (math.prod(shape),)])) if shape[:1] == (1,) else [shape]


def prepare_pictures(pictures: Float[Tensor, "B *shape"], spec: InputSpec) -> Float[Tensor, "B *input"]:
    """Pictures in [0, 1], weakened and normalised where their specification says so; grey ones without a channel."""
    own = tuple(spec.shape)
    if tuple(pictures.shape[1:]) not in (own, own[1:] if own[:1] == (1,) else own):
        raise ShapeError(f"pictures are {tuple(pictures.shape[1:])}, but the network reads {own}")
    flat = pictures.flatten(1)
    if "basis" in spec.parameters:
        flat = weaken(flat, spec.parameters["mean"], spec.parameters["basis"])
    shaped = flat.reshape(len(flat), *own)
    how = spec.options.get("normalisation")
    return shaped if how is None else normalise(shaped, how)


def prepare_sound(waves: Float[Tensor, "B samples"], spec: InputSpec) -> Float[Tensor, "B 1 bands frames"]:
    """Mono waveforms of exactly the specified length as normalised log-mel spectrograms.

    With the option `level` each waveform is first scaled to that root mean square.
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


def fit_length(wave: Float[Tensor, " found"], samples: int) -> Float[Tensor, " wanted"]:
    """The middle of a longer waveform, or a shorter one in the middle of silence."""
    spare = len(wave) - samples
    if spare >= 0:
        return wave[spare // 2 : spare // 2 + samples]
    return torch.nn.functional.pad(wave, (-spare // 2, -spare - (-spare // 2)))


def normalise(values: Float[Tensor, "B *shape"], how: Mapping[str, Any]) -> Float[Tensor, "B *shape"]:
    """By what was measured on the training split, or each example to [0, 1] by itself (a constant one becomes zero)."""
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

"""`av-digits`: handwritten digits (scikit-learn's 1,797) and spoken ones (synthesised); nothing is downloaded."""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data import cache
from crossdistill.data.audio.mixing import mix
from crossdistill.data.config import DataConfig
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.pairing import pair_by_class
from crossdistill.data.prepare import mean_and_deviation, one_thread, prepare_pictures, prepare_sound
from crossdistill.data.principal import fit_principal
from crossdistill.data.sets.spoken_digits import Clip, recorded_clips, recordings_key, synthesis_key, synthesised_clips
from crossdistill.data.split import SPLITS
from crossdistill.data.stored import open_stored, store
from crossdistill.errors import MissingExtraError

DIGITS = tuple("0123456789")
SIDE = 8
SAMPLE_RATE = 8000
SAMPLES = 6200
MEL = {"sample_rate": SAMPLE_RATE, "n_fft": 256, "hop": 200, "bands": 32, "top_db": 80.0, "samples": SAMPLES}
LEVEL = 0.1
NOISE_TILT = (0.0, 2.0)
"""Range of the exponent, drawn for each clip: noise power is frequency ** -exponent, from white to brown noise."""
LOWEST_TILTED_HZ = 50.0
PICTURE_SHARES = (0.5, 1 / 6)
"""Shares of each digit's pictures for training and validation; the rest is for the test."""
BLOCK_ROWS = 500

# These texts are part of the fingerprint of the data: other words would make stored stages and banks unusable.
ABOUT = (
    "Handwritten digits (8x8, scikit-learn) of which only the {components} leading principal components of the "
    "training pictures are kept ({energy:.0%} of their energy), and spoken digits ({speech}) in noise at {snr:g} dB. "
    "Pairs are matched by digit, so pairing itself carries the class: a teacher that hears tells the student what it "
    "sees. The splits share no handwritten sample and no voice; a picture appears in several pairs, each clip in one."
)

HANDWRITING = Licence(
    "handwritten digits",
    "CC BY 4.0",
    "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak), via scikit-learn",
    True,
)
SYNTHESIS = Licence(
    "spoken digits",
    "the speech is free; eSpeak NG, which makes it, is GPL-3.0-or-later",
    "eSpeak NG via espeakng-loader",
    True,
)


class AvDigitsConfig(DataConfig):
    """Handwritten digits (scikit-learn) and spoken ones (synthesised); nothing is downloaded."""

    name: Literal["av-digits"] = "av-digits"
    snr_db: float = Field(default=-2.0, description="speech power over noise power, decibels")
    energy: float = Field(default=0.25, gt=0, le=1, description="share of the pictures' variance that is kept")
    train_clips: int = Field(default=3000, ge=20, description="number of training pairs")
    validation_clips: int = Field(default=1000, ge=20, description="number of validation pairs")
    test_clips: int = Field(default=3000, ge=20, description="number of test pairs")
    speech: Path | None = Field(
        default=None, description="folder of recordings {digit}_{speaker}_{n}.wav to use instead of synthesised speech"
    )

    def build(self, progress: OnProgress) -> Dataset:
        """The data with all labels, from the cache, or else built and stored in it.

        Raises:
            MissingExtraError: scikit-learn, the synthesiser or soxr is not installed; names the extra.
            DataError: a recording is unreadable, or there are fewer than three speakers.
        """

        def build(folder: Path) -> None:
            with one_thread():
                store(folder, _build(self, progress))

        return open_stored(cache.keep(self.name, self.recipe(), build))

    def cached(self) -> cache.CacheEntry | None:
        """The cache entry of these data; None if they are not built yet."""
        return cache.find(self.name, self.recipe())

    def tiny(self) -> "AvDigitsConfig":
        """The same data with 300 + 100 + 200 pairs."""
        return self.model_copy(update={"train_clips": 300, "validation_clips": 100, "test_clips": 200})

    def recipe(self) -> dict[str, Any]:
        """Everything that the content depends on; the cache entry is named by a hash of it."""
        settings = self.model_dump(mode="json", include={"seed", "snr_db", "energy"})
        sounds = synthesis_key() if self.speech is None else recordings_key(self.speech)
        sources = {"speech": sounds, "pictures": _pictures_key()}
        return {"code": cache.code_key(), **settings, "clips": self.clips(), **sources}

    def clips(self) -> dict[str, int]:
        """The number of pairs of each split."""
        return dict(zip(SPLITS, (self.train_clips, self.validation_clips, self.test_clips), strict=True))


def _pictures_key() -> str:
    if importlib.util.find_spec("sklearn") is None:
        raise MissingExtraError("av-digits", "scikit-learn", "demo")
    return f"scikit-learn {version('scikit-learn')}"


def _build(config: AvDigitsConfig, progress: OnProgress) -> Dataset:
    if config.speech is None:
        clips = synthesised_clips(config.clips(), config.seed, SAMPLE_RATE, progress)
    else:
        clips = recorded_clips(config.speech, config.clips(), config.seed, SAMPLE_RATE, progress)
    digits = torch.tensor([clip.digit for clip in clips])
    splits = {
        split: torch.tensor([row for row, clip in enumerate(clips) if clip.split == split], dtype=torch.int64)
        for split in SPLITS
    }
    image, image_spec, energy, source = _pictures(config, digits, splits)
    waves = _in_noise(clips, config.snr_db, config.seed, progress)
    audio, audio_spec = _spectrograms(waves, splits["train"])
    voices = sorted({clip.voice for clip in clips})
    number = {voice: i for i, voice in enumerate(voices)}
    synthesised = config.speech is None
    speech = f"synthesised, {len(voices)} voices" if synthesised else f"recordings, {len(voices)} speakers"
    return Dataset(
        name=config.name,
        inputs={"image": image, "audio": audio},
        targets=digits,
        classes=DIGITS,
        splits=splits,
        input_specs={"image": image_spec, "audio": audio_spec},
        fingerprint="",
        groups={"handwriting": source, "voice": torch.tensor([number[clip.voice] for clip in clips])},
        about=ABOUT.format(
            components=len(image_spec.parameters["basis"]), energy=energy, speech=speech, snr=config.snr_db
        ),
        licences=(
            HANDWRITING,
            SYNTHESIS if synthesised else Licence("spoken digits", "unknown", "the user's own recordings", None),
        ),
    )


def _pictures(
    config: AvDigitsConfig, digits: Int64[Tensor, " N"], splits: dict[str, Tensor]
) -> tuple[Float[Tensor, "N 1 8 8"], InputSpec, float, Int64[Tensor, " N"]]:
    """A picture for each clip, their specification, the share of energy kept, and each picture's number of 1,797."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    raw = torch.from_numpy(loaded.images / 16.0).float()
    rng = np.random.default_rng([config.seed, 1])
    orders = [rng.permutation(np.flatnonzero(loaded.target == digit)) for digit in range(len(DIGITS))]
    cuts = [np.cumsum([round(share * len(order)) for share in PICTURE_SHARES]) for order in orders]
    source = torch.full_like(digits, -1)
    for number, split in enumerate(SPLITS):
        pool = np.concatenate([np.split(order, cut)[number] for order, cut in zip(orders, cuts, strict=True)])
        rows = splits[split]
        source[rows] = torch.from_numpy(pool)[pair_by_class(digits[rows], loaded.target[pool], rng, "pictures")]
    training = raw[source[splits["train"]].unique()]
    principal = fit_principal(training.flatten(1), energy=config.energy)
    parameters = {"mean": principal.mean, "basis": principal.basis}

    def specify(mean: float, deviation: float) -> InputSpec:
        options = {
            "value_range": [0, 1],
            "strokes": "bright on dark",
            "normalisation": mean_and_deviation(mean, deviation),
        }
        return InputSpec(kind="image", shape=(1, SIDE, SIDE), options=options, parameters=parameters)

    seen = prepare_pictures(training, specify(0.0, 1.0))
    spec = specify(float(seen.mean()), float(seen.std()))
    return prepare_pictures(raw, spec)[source], spec, principal.energy, source


def _in_noise(clips: list[Clip], snr_db: float, seed: int, progress: OnProgress) -> Float[Tensor, "N samples"]:
    """Every clip in noise of a colour of its own; each has its own generator, so that no clip depends on another."""
    frequency = torch.from_numpy(np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)).float().clamp(min=LOWEST_TILTED_HZ)
    blocks = []
    for first in range(0, len(clips), BLOCK_ROWS):
        block = clips[first : first + BLOCK_ROWS]
        generators = [np.random.default_rng([seed, 2, first + i]) for i in range(len(block))]
        tilts = torch.tensor([rng.uniform(*NOISE_TILT) for rng in generators])[:, None]
        drawn = np.stack([rng.standard_normal((len(frequency), 2), dtype=np.float32) for rng in generators])
        spectrum = torch.view_as_complex(torch.from_numpy(drawn)) * frequency ** (-tilts / 2)
        blocks.append(mix([clip.wave for clip in block], torch.fft.irfft(spectrum, SAMPLES), snr_db, generators))
        progress("adding noise", first + len(block), len(clips))
    return torch.cat(blocks)


def _spectrograms(
    waves: Float[Tensor, "N samples"], train: Int64[Tensor, " T"]
) -> tuple[Float[Tensor, "N 1 32 32"], InputSpec]:
    """Log-mel spectrograms normalised by the training rows' mean and deviation."""

    def specify(mean: float, deviation: float) -> InputSpec:
        options = {**MEL, "level": LEVEL, "normalisation": mean_and_deviation(mean, deviation)}
        return InputSpec(kind="log-mel", shape=(1, 32, 32), options=options)

    raw = specify(0.0, 1.0)
    seen = torch.cat([prepare_sound(waves[rows], raw) for rows in train.split(BLOCK_ROWS)])
    spec = specify(float(seen.mean()), float(seen.std()))
    return torch.cat([prepare_sound(block, spec) for block in waves.split(BLOCK_ROWS)]), spec

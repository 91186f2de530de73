"""`av-mnist`: MNIST weakened to its leading principal components, with spoken digits in noise, as in AV-MNIST."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data import cache
from crossdistill.data.audio.mixing import mix
from crossdistill.data.audio.sound_file import SOUND_SUFFIXES, read_sound
from crossdistill.data.config import DataConfig
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.idx_file import read_idx
from crossdistill.data.pairing import pair_by_class
from crossdistill.data.prepare import MIN_MAX, one_thread, prepare_pictures, prepare_sound
from crossdistill.data.principal import fit_principal
from crossdistill.data.sets.av_mnist_arrays import array_paths, build_from_arrays
from crossdistill.data.sets.spoken_digits import find_recordings, parse_recording, trim
from crossdistill.data.split import SPLITS, choose_rows, cut, paper_split, split_sources
from crossdistill.data.stored import map_array, open_stored, store
from crossdistill.errors import DataError, SettingError

DIGITS = tuple("0123456789")
SIDE = 28
BANDS = 112
SAMPLE_RATE = 8000
HOP = 72
SAMPLES = (BANDS - 1) * HOP
MEL = {"sample_rate": SAMPLE_RATE, "n_fft": 512, "hop": HOP, "bands": BANDS, "top_db": 80.0, "samples": SAMPLES}
SHARES = (0.6, 0.2)
BLOCK_ROWS = 250
AUDIBLE = 0.1
"""Amplitude, relative to a noise clip's loudest excerpt, below which an excerpt counts as a pause."""
IDX_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)

# These texts are part of the fingerprint of the data: other words would make stored stages and banks unusable.
ABOUT = (
    "MNIST digits (28x28) of which only the {components} leading principal components are kept ({energy:.0%} of their "
    "energy, fitted on {fitted}), and spoken digits of {speakers} speakers in recorded noise at {snr:g} dB (112x112 "
    "log-mel spectrograms). Pairs are matched by digit, so pairing itself carries the class: a teacher that hears "
    "tells the student what it sees. {split}"
)
SPLIT_ABOUT = {
    "speaker": "The splits share no speaker, no noise clip and no picture; a clip is in several pairs, in other noise.",
    "sample": "The splits are random over pairs, as in the paper: the same clip may train and test, in other noise.",
}

LICENCES = (
    Licence("handwritten digits", "CC BY-SA 3.0", "MNIST (LeCun, Cortes, Burges)", True),
    Licence("spoken digits", "CC BY-SA 4.0", "Free Spoken Digit Dataset (Jakobovski)", True),
    Licence("noise", "CC BY 3.0", "ESC-10 (K. J. Piczak)", True),
)


class AvMnistConfig(DataConfig):
    """MNIST and spoken digits in noise, built from downloaded files or read from the reference's arrays.

    The folder `root` contains the arrays of the reference, `avmnist/{image,audio}/{train,test}_data.npy` and
    `avmnist/{train,test}_labels.npy`, which take precedence; or the downloaded `mnist`,
    `free-spoken-digit-dataset/recordings` and `esc10`, whose folders can also be set one by one.
    """

    name: Literal["av-mnist"] = "av-mnist"
    images: Path | None = Field(default=None, description="folder of MNIST's four IDX files")
    speech: Path | None = Field(default=None, description="folder of recordings {digit}_{speaker}_{n}.wav")
    noise: Path | None = Field(default=None, description="folder of noise clips, at any depth")
    rows: int | None = Field(default=None, ge=20, description="pairs; None: one for each picture (70,000 in MNIST)")
    split: Literal["speaker", "sample"] = Field(
        default="speaker",
        description="speaker: no speaker is in two splits; sample: random, as in the paper (seed: its column)",
    )
    snr_db: float = Field(default=10.0, description="speech power over noise power, decibels")
    energy: float = Field(default=0.25, gt=0, le=1, description="share of the pictures' variance that is kept")
    components: int | None = Field(default=None, ge=1, description="principal components kept, instead of a share")
    release_compat: bool = Field(default=False, description="measure statistics over all rows, test rows included")

    def build(self, progress: OnProgress) -> Dataset:
        """The data with all labels, from the cache, or else built and stored in it.

        Raises:
            DataError: a file is missing, unreadable or truncated (names it), or there are fewer than three speakers.
            SettingError: the split is by speaker, and `root` has the reference's arrays, which name no speakers.
        """

        def build(folder: Path) -> None:
            with one_thread():
                arrays = self.arrays()
                if arrays is None:
                    _build(self, folder, progress)
                else:
                    build_from_arrays(
                        arrays, folder, rows=self.rows, seed=self.seed, over_all=self.release_compat, progress=progress
                    )

        return open_stored(cache.keep(self.name, self.recipe(), build))

    def cached(self) -> cache.CacheEntry | None:
        """The cache entry of these data; None if they are not built yet."""
        return cache.find(self.name, self.recipe())

    def tiny(self) -> "AvMnistConfig":
        """The same data with 200 pairs."""
        return self.model_copy(update={"rows": 200})

    def recipe(self) -> dict[str, Any]:
        """Everything that the content depends on; the cache entry is named by a hash of it."""
        fields = {"seed", "rows", "split", "snr_db", "energy", "components", "release_compat"}
        arrays = self.arrays()
        if arrays is not None:
            fields -= {"snr_db", "energy", "components"}
            sources = {"arrays": cache.content_key(arrays)}
        else:
            sources = {
                "images": cache.content_key([path for pair in self.image_paths() for path in pair]),
                "speech": cache.content_key(find_recordings(self.speech_folder())),
                "noise": cache.content_key(self.noise_paths()),
            }
        return {"code": cache.code_key(), **self.model_dump(mode="json", include=fields), **sources}

    def arrays(self) -> list[Path] | None:
        """The reference's arrays under `root`; None if there are none, or if folders of downloaded files are set.

        Raises:
            SettingError: the split is by speaker, which the arrays do not name.
        """
        if self.images or self.speech or self.noise:
            return None
        paths = array_paths(self.folder())
        if paths is not None and self.split == "speaker":
            raise SettingError(
                f"av-mnist: data.split='speaker', and the arrays in {paths[0].parent.parent} name no speakers: set "
                "data.split=sample, or set data.images, data.speech and data.noise to build from recordings"
            )
        return paths

    def image_paths(self) -> list[tuple[Path, Path]]:
        """The files of pictures and labels, gzipped or not: MNIST's training part, then its test part.

        Raises:
            DataError: a file is missing; names it.
        """
        folder = self.images or self.folder() / "mnist"
        pairs = []
        for names in IDX_FILES:
            images, labels = (
                next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
                for name in names
            )
            if images is None or labels is None:
                raise DataError(f"av-mnist: {folder} lacks {names[0]}.gz or {names[1]}.gz (data.images or data.root)")
            pairs.append((images, labels))
        return pairs

    def speech_folder(self) -> Path:
        """The folder of recordings."""
        return self.speech or self.folder() / "free-spoken-digit-dataset" / "recordings"

    def noise_paths(self) -> list[Path]:
        """All noise clips, sorted by path.

        Raises:
            DataError: there are none.
        """
        folder = self.noise or self.folder() / "esc10"
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES)
        if not paths:
            raise DataError(
                f"av-mnist: no noise clips ({', '.join(SOUND_SUFFIXES)}) in {folder} (data.noise or data.root)"
            )
        return paths


@dataclass(frozen=True, slots=True)
class _Sounds:
    """Waveforms, each with its digit (-1 for noise) and its source: a speaker or a noise clip."""

    waves: list[NDArray[np.float32]]
    digits: NDArray[np.int64]
    sources: list[str]


def _build(config: AvMnistConfig, folder: Path, progress: OnProgress) -> None:
    pictures, digits, source = _read_pictures(config)
    speech = _read_speech(config, progress)
    noise = _read_noise(config, progress)
    rng = np.random.default_rng([config.seed, 1])
    if config.split == "sample":
        splits = paper_split(len(digits), config.seed)
        pools = dict.fromkeys(SPLITS, np.arange(len(speech.waves)))
        noises = dict.fromkeys(SPLITS, np.arange(len(noise.waves)))
    else:
        splits = cut(torch.from_numpy(rng.permutation(len(digits))), SHARES)
        pools = _share_out(speech.sources, config.seed, "speakers of the recordings")
        noises = _share_out(noise.sources, config.seed, "noise clips")
    clip = torch.full_like(digits, -1)
    background = torch.full_like(digits, -1)
    for split, rows in splits.items():
        pool = pools[split]
        chosen = pair_by_class(digits[rows], speech.digits[pool], rng, f"recordings of the {split} split")
        clip[rows] = torch.from_numpy(pool)[chosen]
        background[rows] = torch.from_numpy(noises[split][rng.integers(len(noises[split]), size=len(rows))])
    train = torch.arange(len(digits)) if config.release_compat else splits["train"]
    image, image_spec, energy = _weakened(config, pictures, train)
    audio_spec = InputSpec(kind="log-mel", shape=(1, BANDS, BANDS), options={**MEL, "normalisation": MIN_MAX})
    _write_spectrograms(config, folder, audio_spec, speech, noise, clip, background, progress)
    speakers = sorted(set(speech.sources))
    voice = torch.tensor([speakers.index(name) for name in speech.sources])[clip]
    about = ABOUT.format(
        components=len(image_spec.parameters["basis"]),
        energy=energy,
        fitted="all pictures" if config.release_compat else "the training pictures",
        speakers=len(speakers),
        snr=config.snr_db,
        split=SPLIT_ABOUT[config.split],
    )
    store(
        folder,
        Dataset(
            name=config.name,
            inputs={"image": image, "audio": map_array(folder / "input.audio.npy")},
            targets=digits,
            classes=DIGITS,
            splits=splits,
            input_specs={"image": image_spec, "audio": audio_spec},
            fingerprint="",
            groups={"handwriting": source, "recording": clip, "voice": voice, "noise": background},
            about=about,
            licences=LICENCES,
        ),
    )


def _read_pictures(config: AvMnistConfig) -> tuple[Float[Tensor, "N 28 28"], Int64[Tensor, " N"], Int64[Tensor, " N"]]:
    """Pictures in [0, 1], their digits, and their positions in MNIST's order.

    Raises:
        DataError: files of pictures and labels do not fit each other.
    """
    parts, labels = [], []
    for image_path, label_path in config.image_paths():
        images, numbers = read_idx(image_path, 3), read_idx(label_path, 1)
        if len(images) != len(numbers) or images.shape[1:] != (SIDE, SIDE) or numbers.max(initial=0) >= len(DIGITS):
            raise DataError(
                f"{image_path} has shape {images.shape}, {label_path} has shape {numbers.shape} and labels up to "
                f"{numbers.max(initial=0)}; wanted pictures of {SIDE}x{SIDE}, and for each a label from 0 to 9"
            )
        parts.append(images)
        labels.append(numbers)
    pictures, digits = np.concatenate(parts), np.concatenate(labels)
    rows = choose_rows(len(pictures), config.rows, config.seed)
    return (
        torch.from_numpy(pictures[rows].astype(np.float32) / np.float32(255)),
        torch.from_numpy(digits[rows].astype(np.int64)),
        torch.from_numpy(rows),
    )


def _read_speech(config: AvMnistConfig, progress: OnProgress) -> _Sounds:
    paths = find_recordings(config.speech_folder())
    waves = []
    for done, path in enumerate(paths, start=1):
        waves.append(trim(read_sound(path, SAMPLE_RATE)[0]))
        progress("reading recordings", done, len(paths))
    parsed = [parse_recording(path) for path in paths]
    return _Sounds(waves, np.array([digit for digit, _ in parsed]), [speaker for _, speaker in parsed])


def _read_noise(config: AvMnistConfig, progress: OnProgress) -> _Sounds:
    paths = config.noise_paths()
    waves = []
    for done, path in enumerate(paths, start=1):
        wave = read_sound(path, SAMPLE_RATE)[0]
        # A short clip is repeated until it fills a window.
        waves.append(np.tile(wave, -(-2 * SAMPLES // len(wave))) if len(wave) < 2 * SAMPLES else wave)
        progress("reading noise", done, len(paths))
    return _Sounds(waves, np.full(len(paths), -1), [f"{path.parent.name}/{path.name}" for path in paths])


def _share_out(sources: list[str], seed: int, what: str) -> dict[str, NDArray[np.int64]]:
    """The numbers of the sounds of each split; all sounds of a source are in one split."""
    shares = split_sources(sources, seed, SHARES, what)
    return {split: np.array([i for i, s in enumerate(sources) if s in set(names)]) for split, names in shares.items()}


def _weakened(
    config: AvMnistConfig, pictures: Float[Tensor, "N 28 28"], train: Int64[Tensor, " T"]
) -> tuple[Float[Tensor, "N 1 28 28"], InputSpec, float]:
    energy = config.energy if config.components is None else None
    principal = fit_principal(pictures[train].flatten(1), energy=energy, components=config.components)
    options = {"value_range": [0, 1], "strokes": "bright on dark", "normalisation": MIN_MAX}
    parameters = {"mean": principal.mean, "basis": principal.basis}
    spec = InputSpec(kind="image", shape=(1, SIDE, SIDE), options=options, parameters=parameters)
    return prepare_pictures(pictures, spec), spec, principal.energy


def _write_spectrograms(
    config: AvMnistConfig,
    folder: Path,
    spec: InputSpec,
    speech: _Sounds,
    noise: _Sounds,
    clip: Int64[Tensor, " N"],
    background: Int64[Tensor, " N"],
    progress: OnProgress,
) -> None:
    """Write `input.audio.npy` in blocks: all spectrograms together may be larger than memory."""
    out = np.lib.format.open_memmap(
        folder / "input.audio.npy", mode="w+", dtype=np.float32, shape=(len(clip), *spec.shape)
    )
    for first in range(0, len(clip), BLOCK_ROWS):
        rows = range(first, min(first + BLOCK_ROWS, len(clip)))
        generators = [np.random.default_rng([config.seed, 2, row]) for row in rows]
        excerpts = [_excerpt(noise.waves[int(background[row])], rng) for row, rng in zip(rows, generators, strict=True)]
        spoken = [speech.waves[int(clip[row])] for row in rows]
        waves = mix(spoken, torch.from_numpy(np.stack(excerpts)), config.snr_db, generators)
        out[first : first + len(rows)] = prepare_sound(waves, spec).numpy()
        progress("spectrograms", rows.stop, len(clip))
    out.flush()


def _excerpt(wave: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A random window of a noise clip, outside its pauses."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    windows = energy[SAMPLES:] - energy[:-SAMPLES]
    audible = np.flatnonzero(windows >= AUDIBLE**2 * windows.max())
    start = int(audible[rng.integers(len(audible))])
    return wave[start : start + SAMPLES]

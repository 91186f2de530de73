"""Spoken digits as waveforms with their voices: synthesised, or recordings from a folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.audio.sound_file import read_sound, resample
from crossdistill.data.audio.speech_synthesis import (
    ACCENTS,
    Speaker,
    Utterance,
    list_variants,
    synthesise,
    synthesiser_version,
)
from crossdistill.data.cache import content_key
from crossdistill.data.content import OnProgress
from crossdistill.data.split import SPLITS, split_sources
from crossdistill.errors import DataError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDING = re.compile(r"(?P<digit>\d)_(?P<speaker>.+)_(?P<number>\d+)\.wav")

VOICE_SHARES = (0.42, 0.15)
"""Shares of the voices for training and validation; the rest is for the test."""
WORDS_PER_MINUTE = (120, 220)
PITCH = (15, 85)
VARIATION = (15, 8)
"""Largest deviation of an utterance from its speaker's words per minute and pitch."""
QUIET = 0.02
"""Share of the peak below which the ends of a clip are silence."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One spoken digit without silence at its ends; `voice` is a speaker, or a synthesised voice of any accent."""

    digit: int
    voice: str
    split: str
    wave: NDArray[np.float32]


def synthesis_key() -> dict[str, Any]:
    """The part of a data set's key for synthesised speech."""
    return {
        "espeakng-loader": synthesiser_version(),
        "accents": list(ACCENTS),
        "rates": [*WORDS_PER_MINUTE, *PITCH, *VARIATION],
        "shares": list(VOICE_SHARES),
    }


def recordings_key(folder: Path) -> dict[str, Any]:
    """The part of a data set's key for recordings: the names and content of the files."""
    return {**content_key(find_recordings(folder)), "shares": list(VOICE_SHARES)}


def find_recordings(folder: Path) -> list[Path]:
    """The files `{digit}_{speaker}_{n}.wav` of a folder, sorted by name.

    Raises:
        DataError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise DataError(f"recordings: the folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if RECORDING.fullmatch(path.name))
    if not paths:
        raise DataError(
            f"recordings: no file in {folder} is named like 7_jackson_32.wav ({{digit}}_{{speaker}}_{{n}}.wav)"
        )
    return paths


def parse_recording(path: Path) -> tuple[int, str]:
    """The digit and the speaker in a recording's name."""
    match = RECORDING.fullmatch(path.name)
    assert match is not None, path
    return int(match["digit"]), match["speaker"]


def synthesised_clips(counts: dict[str, int], seed: int, sample_rate: int, progress: OnProgress) -> list[Clip]:
    """`counts` clips for each split, with the digits in turn; no voice variant is in two splits.

    A voice variant with an accent is a speaker, with a rate and a pitch from which each clip deviates by at most
    `VARIATION`. Each speaker of a split says all digits once before a speaker repeats them.
    """
    voices = split_sources(list_variants(), seed, VOICE_SHARES, "synthesised voices")
    planned = [
        (split, speaker)
        for number, split in enumerate(SPLITS)
        for speaker in _plan(voices[split], counts[split], np.random.default_rng([seed, 3, number]))
    ]
    total = sum(counts.values())
    clips, clip_rate = synthesise(
        [speaker for _, speaker in planned], lambda done: progress("synthesising speech", done, total)
    )
    result = []
    waves = iter(clips)
    for split, speaker in planned:
        for utterance in speaker.utterances:
            wave = trim(next(waves).astype(np.float32) / np.float32(32768))
            result.append(
                Clip(WORDS.index(utterance.text), speaker.variant, split, resample(wave, clip_rate, sample_rate))
            )
    return result


def recorded_clips(
    folder: Path, counts: dict[str, int], seed: int, sample_rate: int, progress: OnProgress
) -> list[Clip]:
    """At most `counts` recordings for each split, drawn by `seed`; no speaker is in two splits.

    Raises:
        DataError: a file is unreadable or truncated, or there are fewer than three speakers.
    """
    paths = find_recordings(folder)
    speakers = split_sources([parse_recording(path)[1] for path in paths], seed, VOICE_SHARES, f"speakers in {folder}")
    rng = np.random.default_rng([seed, 4])
    chosen = []
    for split in SPLITS:
        pool = [path for path in paths if parse_recording(path)[1] in speakers[split]]
        chosen += [(split, pool[i]) for i in sorted(rng.permutation(len(pool))[: counts[split]])]
    result = []
    for done, (split, path) in enumerate(chosen, start=1):
        digit, speaker = parse_recording(path)
        result.append(Clip(digit, speaker, split, trim(read_sound(path, sample_rate)[0])))
        progress("reading recordings", done, len(chosen))
    return result


def trim(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """A waveform without the silence at both ends."""
    loud = np.flatnonzero(np.abs(wave) > QUIET * np.abs(wave).max(initial=0.0))
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave


def _plan(variants: list[str], clips: int, rng: np.random.Generator) -> list[Speaker]:
    names = [(accent, variant) for variant in variants for accent in ACCENTS]
    names = [names[i] for i in rng.permutation(len(names))]
    said: list[list[str]] = [[] for _ in names]
    for clip in range(clips):
        said[clip // len(WORDS) % len(names)].append(WORDS[clip % len(WORDS)])
    speakers = []
    for (accent, variant), words in zip(names, said, strict=True):
        of_speaker = rng.integers([WORDS_PER_MINUTE[0], PITCH[0]], [WORDS_PER_MINUTE[1] + 1, PITCH[1] + 1])
        deviations = rng.integers([-VARIATION[0], -VARIATION[1]], [VARIATION[0] + 1, VARIATION[1] + 1], (len(words), 2))
        if words:
            utterances = [
                Utterance(w, int(r), int(p)) for w, (r, p) in zip(words, of_speaker + deviations, strict=True)
            ]
            speakers.append(Speaker(accent, variant, tuple(utterances)))
    return speakers

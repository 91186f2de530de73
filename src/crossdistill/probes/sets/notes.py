"""Pitch and instrument of single notes: NSynth (Engel et al., ICML 2017), and notes of the Philharmonia Orchestra."""

import json
import re
from collections import Counter
from pathlib import Path

from crossdistill.errors import DataError
from crossdistill.probes.clips import (
    Clip,
    ProbeData,
    clip_of,
    divided,
    layout_error,
    named_sounds,
    split_each_class,
)

NSYNTH = {"train": ("nsynth-train",), "validation": ("nsynth-valid", "nsynth-dev"), "test": ("nsynth-test",)}
NAME = re.compile(r"(?P<instrument>[a-z -]+)_(?P<note>[A-G]s?\d)_(?P<length>[^_]+)_(?P<dynamic>[^_]+)_(?P<how>.+)")
"""A file name of the Philharmonia's notes; `s` stands for a sharp."""
PHILHARMONIA = "INSTRUMENT/INSTRUMENT_NOTE_LENGTH_DYNAMIC_ARTICULATION.mp3, such as oboe_A4_05_forte_normal.mp3"


def nsynth_pitch(root: Path) -> ProbeData:
    """The MIDI number of each note, a class each, in the official splits.

    Raises:
        DataError: a folder or its `examples.json` is missing or damaged, or a listed recording is.
    """
    return _nsynth(root, "pitch")


def nsynth_instrument(root: Path) -> ProbeData:
    """The family of the instrument, 11 classes, in the official splits.

    Raises:
        DataError: as of `nsynth_pitch`.
    """
    return _nsynth(root, "instrument_family_str")


def _nsynth(root: Path, label: str) -> ProbeData:
    clips, splits = [], []
    for split, names in NSYNTH.items():
        folder = next((root / name for name in names if (root / name / "examples.json").is_file()), None)
        if folder is None:
            raise layout_error(root, f"{names[0]}/examples.json and {names[0]}/audio/")
        try:
            examples = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
            labels = {str(name): str(entry[label]) for name, entry in examples.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder / 'examples.json'}: wanted an object of notes, each with {label!r}: {error}"
            ) from error
        for name in sorted(labels):
            clips.append(clip_of(folder / "audio" / f"{name}.wav", root, labels[name]))
            splits.append(split)
    return divided(clips, splits, root)


def philharmonia_instrument(root: Path) -> ProbeData:
    """The instrument of each note; a note (such as A4) of an instrument is in one split, whatever its length.

    Raises:
        DataError: no recording is named so.
    """
    return _philharmonia(root, "instrument")


def philharmonia_pitch(root: Path) -> ProbeData:
    """The note, a class each; an instrument's recordings of a note are in one split.

    Notes that fewer than three instruments play are left out: they cannot be in all splits.

    Raises:
        DataError: no recording is named so.
    """
    return _philharmonia(root, "note")


def _philharmonia(root: Path, label: str) -> ProbeData:
    named = named_sounds(root, NAME)
    if not named:
        raise layout_error(root, PHILHARMONIA)
    units = [f"{name['instrument']} {name['note']}" for _, name in named]
    played = Counter(name[label] for _, name in dict(zip(units, named, strict=True)).values())
    rows = [row for row, (_, name) in enumerate(named) if played[name[label]] >= 3]
    clips: list[Clip] = [clip_of(named[row][0], root, named[row][1][label]) for row in rows]
    splits = split_each_class(clips, [units[row] for row in rows])
    remark = "the Philharmonia's notes have no official split: split by hash, a note of an instrument stays together"
    return divided(clips, splits, root, remark)

"""Whole pieces of music: GTZAN's genres, keys of GiantSteps, arousal and valence of EmoMusic."""

import json
import math
from pathlib import Path

from crossdistill.data.own_splits import split_called
from crossdistill.data.table_file import read_table
from crossdistill.errors import DataError
from crossdistill.probes.clips import (
    Clip,
    ProbeData,
    clip_of,
    divided,
    layout_error,
    sound_named,
    sounds,
    split_by_hash,
    split_each_class,
)
from crossdistill.probes.metrics import KEYS, key_class

FILTERED = {"train": "train_filtered.txt", "validation": "valid_filtered.txt", "test": "test_filtered.txt"}
"""Lists of the split without artists in two parts (Sturm 2013; Kereliuk et al. 2015), which MARBLE uses."""
DAMAGED = "jazz.00054"
"""A recording of GTZAN that no decoder reads."""


def gtzan(root: Path) -> ProbeData:
    """Ten genres, by the artist-filtered lists if they are there, else 60, 20 and 20 % of each genre by hash.

    Raises:
        DataError: another layout, or a listed recording is missing.
    """
    folder = next((root / name for name in ("genres", "genres_original", "") if sounds(root / name, "*/*.*.*")), None)
    if folder is None:
        raise layout_error(root, "genres/GENRE/GENRE.00000.wav")
    lists = {split: next(iter(sorted(root.rglob(name))), None) for split, name in FILTERED.items()}
    if None in lists.values():
        clips = [clip_of(path, root, path.parent.name) for path in sounds(folder, "*/*") if path.stem != DAMAGED]
        splits = split_each_class(clips, [clip.path.stem for clip in clips])
        remark = "without *_filtered.txt, artists of the test may be in the training: accuracies are too high"
        return divided(clips, splits, root, remark)
    clips, splits = [], []
    for split, file in lists.items():
        for line in file.read_text(encoding="utf-8").split() if file is not None else ():
            path = sound_named((folder / line).with_suffix(""))
            if path is None and Path(line).stem != DAMAGED:
                raise layout_error(folder, f"{line}, which {file} lists")
            if path is not None and path.stem != DAMAGED:
                clips.append(clip_of(path, root, path.parent.name))
                splits.append(split)
    return divided(clips, splits, root)


def giantsteps(root: Path) -> ProbeData:
    """24 keys (Knees et al., ISMIR 2015).

    Either a `giantsteps_clips.json` of {clip: {"y": key, "split": name}} with `wav/`, or `annotations/key/*.key` with
    `audio/`, split by hash of the piece.

    Raises:
        DataError: another layout, or a text that is no key.
    """
    listed = _json_list(root, "giantsteps_clips.json")
    if listed is not None:
        clips = [clip_of(path, root, KEYS[key_class(str(entry["y"]))]) for path, entry in listed]
        return divided(clips, [_split(entry) for _, entry in listed], root)
    clips = []
    for file in sorted(root.glob("annotations/key/*.key")):
        path = sound_named(root / "audio" / file.stem)
        if path is not None:
            clips.append(clip_of(path, root, KEYS[key_class(file.read_text(encoding="utf-8"))]))
    if not clips:
        raise layout_error(root, "giantsteps_clips.json and wav/, or annotations/key/*.key and audio/")
    splits = split_by_hash(clip.path.stem.partition(".")[0] for clip in clips)
    return divided(clips, splits, root, "no list of splits: split by hash of the piece")


def emomusic(root: Path) -> ProbeData:
    """Arousal and valence (Soleymani et al., 2013).

    Either an `emomusic.json` of {clip: {"y": [arousal, valence], "split": name}} with `wav/`, or the official
    `annotations/static_annotations.csv` with `clips_45seconds/ID.mp3`, split by hash.

    Raises:
        DataError: another layout.
    """
    listed = _json_list(root, "emomusic.json")
    slots = ("arousal", "valence")
    if listed is not None:
        numbered = [clip_of(path, root, numbers=_two(entry["y"], path)) for path, entry in listed]
        return divided(numbered, [_split(entry) for _, entry in listed], root, slots=slots)
    file = next(iter(sorted(root.rglob("static_annotations.csv"))), None)
    if file is None:
        raise layout_error(root, "emomusic.json and wav/, or annotations/static_annotations.csv and clips_45seconds/")
    table = read_table(file, "utf-8", None)
    names = [str(name) for name in table.column("song_id", str(file))]
    columns = [table.column(f"mean_{slot}", str(file)) for slot in slots]
    paths = {path.stem: path for path in sounds(root)}
    clips = [
        Clip(name, paths[name], numbers=_two(values, file))
        for name, *values in zip(names, *columns, strict=True)
        if name in paths
    ]
    splits = split_by_hash(clip.id for clip in clips)
    return divided(clips, splits, root, "split by hash of the song", slots)


def _two(values: object, where: Path) -> tuple[float, ...]:
    try:
        numbers = tuple(float(str(value)) for value in values) if isinstance(values, list | tuple) else ()
    except ValueError:
        numbers = ()
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise DataError(f"{where}: wanted arousal and valence as two finite numbers, found {values!r}")
    return numbers


def _json_list(root: Path, name: str) -> list[tuple[Path, dict[str, object]]] | None:
    """The clips of a list with their entries; None where there is no such list."""
    file = next(iter(sorted(root.rglob(name))), None)
    if file is None:
        return None
    try:
        entries = {str(key): dict(value) for key, value in json.loads(file.read_text(encoding="utf-8")).items()}
        if not all({"y", "split"} <= set(entry) for entry in entries.values()):
            raise ValueError("an entry lacks 'y' or 'split'")
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: wanted an object of clips, each with 'y' and 'split': {error}") from error
    listed = []
    for key in sorted(entries):
        places = (sound_named(file.parent / folder / key) for folder in ("wav", "audio", ""))
        path = next((place for place in places if place is not None), None)
        if path is None:
            raise layout_error(file.parent, f"wav/{key}.wav, which {file.name} lists")
        listed.append((path, entries[key]))
    return listed


def _split(entry: dict[str, object]) -> str:
    split = split_called(entry["split"])
    if split is None:
        raise DataError(f"{entry['split']!r} names no split; wanted train, validation or test")
    return split

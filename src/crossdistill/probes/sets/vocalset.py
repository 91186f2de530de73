"""VocalSet (Wilkins et al., ISMIR 2018): singers and techniques, by the lists of MARBLE or of the data set."""

import re
from pathlib import Path

from crossdistill.errors import DataError
from crossdistill.probes.clips import (
    Clip,
    ProbeData,
    clip_of,
    divided,
    hashed,
    layout_error,
    named_sounds,
    split_each_class,
)

TECHNIQUES = (
    *("belt", "breathy", "inhaled", "lip_trill", "spoken", "straight", "trillo", "trill", "vibrato", "vocal_fry"),
)
NAME = re.compile(r"(?P<singer>[fm]\d{1,2})_(?P<rest>.+)")
WANTED = "recordings named SINGER_..._TECHNIQUE_....wav, such as f1_arpeggios_belt_c_a.wav (FULL/ of VocalSet)"
ENDS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}


def singers(root: Path) -> ProbeData:
    """20 singers, by `{train,valid,test}_s.txt` if there are such lists, else 60, 20 and 20 % of each singer's files.

    Raises:
        DataError: no recording is named so, or a list names one that is missing.
    """
    named = _found(root)
    clips = [clip_of(path, root, name["singer"]) for path, name in named]
    return _listed(root, clips, "s") or divided(
        clips, split_each_class(clips, [clip.path.stem for clip in clips]), root, "no lists *_s.txt: split by hash"
    )


def techniques(root: Path) -> ProbeData:
    """Ten techniques; singers of the test are in no other split.

    By `{train,valid,test}_t.txt`, else by the data set's `train_singers_technique.txt` and
    `test_singers_technique.txt` (a fifth of the training singers is the validation), else by hash of the singer.

    Raises:
        DataError: as of `singers`.
    """
    clips, names = [], []
    for path, name in _found(root):
        technique = next((term for term in TECHNIQUES if f"_{term}_" in f"_{name['rest']}_"), None)
        if technique is not None:
            clips.append(clip_of(path, root, technique))
            names.append(name["singer"])
    if not clips:
        raise layout_error(root, WANTED)
    return _listed(root, clips, "t") or divided(clips, _by_singer(root, names), root, "no lists *_t.txt: by singer")


def _found(root: Path) -> list[tuple[Path, re.Match[str]]]:
    named = named_sounds(root, NAME)
    if not named:
        raise layout_error(root, WANTED)
    return named


def _listed(root: Path, clips: list[Clip], end: str) -> ProbeData | None:
    """The division by three lists of file names; None where a list is missing."""
    files = {
        split: next((path for name in names for path in sorted(root.rglob(f"{name}_{end}.txt"))), None)
        for split, names in ENDS.items()
    }
    if None in files.values():
        return None
    by_name: dict[str, Clip] = {}
    for clip in clips:
        other = by_name.setdefault(clip.path.stem, clip)
        if other is not clip:
            raise DataError(
                f"{root}: the lists name files without folders, and two are called so: {other.path}, {clip.path}"
            )
    chosen, splits = [], []
    for split, file in files.items():
        for line in file.read_text(encoding="utf-8").split() if file is not None else ():
            name = Path(line).stem
            if name not in by_name:
                raise layout_error(root, f"{line}, which {file} lists")
            chosen.append(by_name[name])
            splits.append(split)
    return divided(chosen, splits, root)


def _by_singer(root: Path, singers: list[str]) -> list[str]:
    official = [next(iter(root.rglob(f"{name}_singers_technique.txt")), None) for name in ("train", "test")]
    if official[1] is not None:
        tested = {_short(name) for name in re.split(r"[\s,]+", official[1].read_text(encoding="utf-8")) if name}
    else:
        tested = _first_fifth(set(singers))
    validated = _first_fifth(set(singers) - tested)
    return ["test" if name in tested else "validation" if name in validated else "train" for name in singers]


def _short(name: str) -> str:
    return re.sub(r"^(f|m)(?:ale|emale)?_?(\d+)$", r"\1\2", name.strip().lower())


def _first_fifth(names: set[str]) -> set[str]:
    """A fifth of men and of women, at least one of either where there are two."""
    held: set[str] = set()
    for kind in "fm":
        group = sorted((name for name in names if name.startswith(kind)), key=hashed)
        held |= set(group[: max(1 if len(group) > 1 else 0, len(group) // 5)])
    return held

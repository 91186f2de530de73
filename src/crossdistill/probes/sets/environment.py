"""Environmental sounds: the five folds of ESC-50 and ESC-10 (Piczak, ACM MM 2015)."""

import re
from pathlib import Path

from crossdistill.data.table_file import read_table
from crossdistill.probes.clips import ProbeData, clip_of, crossed, layout_error, sounds

NAME = re.compile(r"(?P<fold>\d)-(?P<source>\d+)-(?P<take>\w+?)(-\d+)?")
PROTOCOL = "the published protocol has no validation and trains on all other folds"


def esc50(root: Path) -> ProbeData:
    """50 classes by `meta/esc50.csv`, with the data set's folds.

    Raises:
        DataError: another layout.
    """
    return _listed(root, esc10=False)


def esc10(root: Path) -> ProbeData:
    """Ten classes: those that `meta/esc50.csv` marks, or a folder for each class with files FOLD-SOURCE-TAKE.

    Raises:
        DataError: another layout.
    """
    if (root / "meta" / "esc50.csv").is_file():
        return _listed(root, esc10=True)
    candidates = [(path, NAME.fullmatch(path.stem)) for path in sounds(root, "*/*")]
    named = [(path, name) for path, name in candidates if name is not None]
    if not named:
        raise layout_error(root, "meta/esc50.csv and audio/, or CLASS/FOLD-SOURCE-TAKE.ogg")
    # Folders may be called `001 - Dog bark`.
    clips = [clip_of(path, root, re.sub(r"^\d+ - ", "", path.parent.name)) for path, _ in named]
    folds = [name["fold"] for _, name in named]
    remark = PROTOCOL if len(set(folds)) == 5 else f"{len(set(folds))} of the 5 folds are there; {PROTOCOL}"
    return crossed(
        clips,
        folds,
        root,
        [f"{clip.labels} {name['source']}" for clip, (_, name) in zip(clips, named, strict=True)],
        remark,
    )


def _listed(root: Path, *, esc10: bool) -> ProbeData:
    file = root / "meta" / "esc50.csv"
    if not file.is_file():
        raise layout_error(root, "meta/esc50.csv and audio/")
    table = read_table(file, "utf-8", None)
    columns = [table.column(name, str(file)) for name in ("filename", "fold", "category", "esc10")]
    rows = [row for row in zip(*columns, strict=True) if not esc10 or str(row[3]).lower() == "true"]
    clips = [clip_of(root / "audio" / str(name), root, str(label)) for name, _, label, _ in rows]
    return crossed(clips, [str(fold) for _, fold, _, _ in rows], root, [clip.path.stem for clip in clips], PROTOCOL)

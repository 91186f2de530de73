"""Few-shot subsets of the training clips: balanced over classes, drawn by seed, stored by clip id for reuse."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from crossdistill.errors import DataError
from crossdistill.probes.clips import Fold, ProbeData
from crossdistill.runtime.files import write_json
from crossdistill.runtime.hashing import derived_seed


def balanced_subset(data: ProbeData, fold: Fold, shots: int, seed: int, name: str) -> tuple[int, ...]:
    """`shots` training clips of each class (of slots: of each combination), drawn by `seed`.

    A class of fewer clips gives all of them. A larger number of shots of one seed contains the smaller one.
    """
    by_class: dict[tuple[str, ...], list[int]] = {}
    for row in sorted(fold.train, key=lambda row: data.clips[row].id):
        by_class.setdefault(data.clips[row].labels, []).append(row)
    chosen: list[int] = []
    for labels, rows in sorted(by_class.items()):
        source = torch.Generator().manual_seed(derived_seed("few shots", name, seed, *labels))
        order = torch.randperm(len(rows), generator=source)[:shots].tolist()
        chosen += [rows[place] for place in order]
    return tuple(chosen)


def subsets(
    data: ProbeData, task: str, fold: int, shots: int, seeds: Sequence[int], folder: Path | None
) -> list[tuple[int, ...]]:
    """The subset of each seed: those that `folder` holds for this task, fold and number of shots, else drawn ones.

    Drawn ones are stored there, as clip ids by seed, so that other programs and later runs take the same clips.

    Raises:
        DataError: a stored subset names a clip twice or one that is not in the training split, subsets of two seeds
            differ in size, or the file is damaged. Names the file and the seed.
    """
    name = f"{task}-fold{fold}-{shots}shots.json"
    file = None if folder is None else folder / name
    stored = _read(file) if file is not None and file.is_file() else {}
    division = data.folds[fold]
    rows = {data.clips[row].id: row for row in division.train}
    chosen, missing = [], False
    for seed in seeds:
        ids = stored.get(str(seed))
        if ids is None:
            subset = balanced_subset(data, division, shots, seed, f"{task} {fold}")
            stored[str(seed)] = [data.clips[row].id for row in subset]
            missing = True
        else:
            strange = [name for name in ids if name not in rows]
            if strange or not ids:
                raise DataError(
                    f"{file}: seed {seed}: {strange[0] if strange else 'no clip'} is not in the training split"
                )
            if len(set(ids)) < len(ids):
                raise DataError(f"{file}: seed {seed}: {_twice(ids)} is listed twice; leave one out")
            subset = tuple(rows[name] for name in ids)
        chosen.append(subset)
    # The heads of all seeds train together.
    other = next((number for number, subset in enumerate(chosen) if len(subset) != len(chosen[0])), None)
    if other is not None:
        raise DataError(
            f"{file}: seed {seeds[other]} has {len(chosen[other])} clips, and seed {seeds[0]} has {len(chosen[0])}; "
            "subsets of one size are wanted: correct the file, or delete it to draw them again"
        )
    if file is not None and missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"task": task, "fold": fold, "shots": shots, "seeds": stored})
    return chosen


def _twice(ids: Sequence[str]) -> str:
    return Counter(ids).most_common(1)[0][0]


def _read(file: Path) -> dict[str, list[str]]:
    try:
        seeds = json.loads(file.read_text(encoding="utf-8"))["seeds"]
        return {str(seed): [str(name) for name in ids] for seed, ids in seeds.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged: wanted an object with the clip ids of each seed: {error}") from error

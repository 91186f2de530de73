"""Fluent Speech Commands (Lugosch et al., Interspeech 2019): intent as action, object and location, all right."""

from pathlib import Path

from crossdistill.data.table_file import read_table
from crossdistill.probes.clips import ProbeData, clip_of, divided, layout_error

SLOTS = ("action", "object", "location")


def read(root: Path) -> ProbeData:
    """The official csv files `data/{train,valid,test}_data.csv`, with the columns path and the three slots.

    Raises:
        DataError: a csv file or a column is missing.
    """
    clips, splits = [], []
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        file = root / "data" / f"{name}_data.csv"
        if not file.is_file():
            raise layout_error(root, "data/train_data.csv, data/valid_data.csv, data/test_data.csv and wavs/")
        table = read_table(file, "utf-8", None)
        columns = [table.column(column, str(file)) for column in ("path", *SLOTS)]
        for path, *labels in zip(*columns, strict=True):
            clips.append(clip_of(root / str(path), root, *map(str, labels)))
            splits.append(split)
    return divided(clips, splits, root, slots=SLOTS)

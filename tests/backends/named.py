"""Networks by name, built for a data set."""

from pathlib import Path
from typing import Any

from crossdistill import Dataset
from crossdistill.backends.names import build


def made(path: Path, digits: Dataset, how: str | None = None, *, student: bool = False, **rest: Any) -> Any:
    options = rest.pop("options", {})
    return build(
        f"transformers:{path}",
        options,
        rest.pop("reads", None),
        how,
        rest.pop("dtype", "float32"),
        member="big",
        dataset=digits,
        student=student,
    )

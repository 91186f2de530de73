"""Logs the metrics of a run to metrics.jsonl, and to the other trackers that the recipe names."""

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from crossdistill.errors import MissingExtraError
from crossdistill.runtime.files import storage_error

TIMES = "times.jsonl"
"""File of a run folder with the end time and the speed of each epoch."""


@runtime_checkable
class Tracker(Protocol):
    """A sink for metrics."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values at a step."""
        ...

    def close(self) -> None:
        """Write buffered values and close."""
        ...


class Tracking:
    """Writes the metrics of a run: one JSON line per record, and a copy to every tracker."""

    def __init__(self, out: Path, trackers: Sequence[str] = (), name: str = "run", *, silent: bool = False) -> None:
        self.path = out / "metrics.jsonl"
        self.silent = silent
        try:
            self._file = None if silent else self.path.open("a", encoding="utf-8")
            # A separate file, never truncated: metrics.jsonl is byte-identical in every run of a recipe.
            self._times = None if silent else (out / TIMES).open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise storage_error(self.path, error) from error
        self._others = [] if silent else [_tracker(kind, out, name) for kind in trackers]
        self._moment = 0
        self.finished_bytes = 0
        """Bytes of metrics.jsonl that belong to finished stages."""

    def log(self, kind: str, stage: str, epoch: int, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Write one record.

        Raises:
            StorageError: the disk is full.
        """
        if self._file is None:
            return
        record: dict[str, Any] = {"kind": kind, "stage": stage, "epoch": epoch, "step": step}
        try:
            self._file.write(json.dumps(record | {name: _finite(value) for name, value in values.items()}) + "\n")
        except OSError as error:
            raise storage_error(self.path, error) from error
        self._moment += 1
        for other in self._others:
            other.log({f"{stage}/{name}": float(value) for name, value in values.items()}, self._moment)

    def clock(self, stage: str, epoch: int, seconds: float, rows_per_second: float) -> None:
        """Write the end of an epoch (UTC), seconds since its stage started or resumed, and the speed to times.jsonl.

        An epoch that is repeated after a kill has two lines, of which the later one is valid.

        Raises:
            StorageError: the disk is full.
        """
        if self._times is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "stage": stage, "epoch": epoch, "seconds": round(seconds, 3)}
        try:
            self._times.write(json.dumps(record | {"rows_per_second": round(rows_per_second, 1)}) + "\n")
        except OSError as error:
            raise storage_error(Path(self._times.name), error) from error

    def position(self) -> int:
        """Bytes written so far, after everything has reached the disk.

        Raises:
            StorageError: the disk is full.
        """
        if self._file is None:
            return 0
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(self.path, error) from error
        return self._file.tell()

    def back_to(self, position: int) -> None:
        """Truncate the metrics to the position of the checkpoint that the run resumes from."""
        if self._file is not None:
            self._file.flush()
            # The file may be shorter after a crash; extending it with zeros would make it unreadable.
            position = min(position, self.path.stat().st_size)
            self._file.truncate(position)
            self._file.seek(position)
            with self.path.open("rb") as lines:
                self._moment = sum(1 for _ in lines)

    def __enter__(self) -> "Tracking":
        """The files are open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file and the trackers."""
        for other in self._others:
            other.close()
        if self._times is not None:
            with suppress(OSError):
                self._times.close()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as failed:
                if error is None:
                    raise storage_error(self.path, failed) from failed


def _finite(value: float | Tensor) -> float | None:
    number = float(value)
    return number if number - number == 0 else None


def require(trackers: Sequence[str]) -> None:
    """Check that the packages of these trackers are installed.

    Raises:
        MissingExtraError: one is not; says how to install it.
    """
    for kind in trackers:
        _module(kind)


_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def _module(kind: str) -> Any:
    try:
        return importlib.import_module(_MODULES[kind])
    except ImportError as error:
        raise MissingExtraError(f"tracking with {kind}", kind, kind) from error


def _tracker(kind: str, out: Path, name: str) -> Tracker:
    makers: dict[str, Callable[[Path, str], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
        "mlflow": _MLflow,
    }
    return makers[kind](out, name)


class _TensorBoard:
    def __init__(self, out: Path, name: str) -> None:
        self._folder = out / "tensorboard"
        self._writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            # Hides records of later steps that a killed process wrote.
            self._writer = _module("tensorboard").SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _WeightsAndBiases:
    def __init__(self, out: Path, name: str) -> None:
        self._run = _module("wandb").init(project="crossdistill", name=name, dir=str(out), resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, out: Path, name: str) -> None:
        self._module = _module("mlflow")
        self._module.start_run(run_name=name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._module.end_run()

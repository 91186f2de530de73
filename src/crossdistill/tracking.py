"""Where the numbers of a run go: metrics.jsonl always, other trackers where the recipe names them."""

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from crossdistill.errors import MissingExtraError, StorageError


@runtime_checkable
class Tracker(Protocol):
    """Anything that takes numbers."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of one moment."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Tracking:
    """The metrics of a run: one JSON line for each moment, and a copy to every tracker."""

    def __init__(self, out: Path, trackers: Sequence[str] = (), name: str = "run", *, silent: bool = False) -> None:
        self.path = out / "metrics.jsonl"
        self.silent = silent
        self._file = None if silent else self.path.open("a", encoding="utf-8")
        self._others = [] if silent else [_tracker(kind, out, name) for kind in trackers]
        self._moment = 0

    def log(self, kind: str, stage: str, epoch: int, step: int, values: Mapping[str, float | Tensor]) -> None:
        """Write one moment.

        Raises:
            StorageError: the disk is full.
        """
        if self._file is None:
            return
        record: dict[str, Any] = {"kind": kind, "stage": stage, "epoch": epoch, "step": step}
        try:
            self._file.write(json.dumps(record | {name: _finite(value) for name, value in values.items()}) + "\n")
        except OSError as error:
            raise StorageError(f"could not write {self.path}: {error}; earlier checkpoints are intact") from error
        self._moment += 1
        for other in self._others:
            other.log({f"{stage}/{name}": float(value) for name, value in values.items()}, self._moment)

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
            raise StorageError(f"could not write {self.path}: {error}; earlier checkpoints are intact") from error
        return self._file.tell()

    def back_to(self, position: int) -> None:
        """Forget what was written after a checkpoint that the run goes on from."""
        if self._file is not None:
            self._file.flush()
            self._file.truncate(position)
            self._file.seek(position)

    def __enter__(self) -> "Tracking":
        """Open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file and the trackers."""
        for other in self._others:
            other.close()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as failed:
                if error is None:
                    raise StorageError(f"could not write {self.path}: {failed}") from failed


def _finite(value: float | Tensor) -> float | None:
    number = float(value)
    return number if number - number == 0 else None


def _tracker(kind: str, out: Path, name: str) -> Tracker:
    makers: dict[str, Callable[[Path, str], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WeightsAndBiases,
        "mlflow": _MLflow,
    }
    return makers[kind](out, name)


class _TensorBoard:
    def __init__(self, out: Path, name: str) -> None:
        try:
            module = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise MissingExtraError("tracking with TensorBoard", "tensorboard", "tensorboard") from error
        self._writer = module.SummaryWriter(str(out / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, out: Path, name: str) -> None:
        try:
            module = importlib.import_module("wandb")
        except ImportError as error:
            raise MissingExtraError("tracking with Weights & Biases", "wandb", "wandb") from error
        self._run = module.init(project="crossdistill", name=name, dir=str(out), resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, out: Path, name: str) -> None:
        try:
            self._module = importlib.import_module("mlflow")
        except ImportError as error:
            raise MissingExtraError("tracking with MLflow", "mlflow", "mlflow") from error
        self._module.start_run(run_name=name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._module.end_run()

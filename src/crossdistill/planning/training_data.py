"""The training data given by a custom training loop, and the detection of which facts a method reads."""

from typing import Any

from torch import Tensor

from crossdistill.batch import Task
from crossdistill.data.dataset import Dataset
from crossdistill.data.targets import has_target
from crossdistill.errors import SettingError, ShapeError
from crossdistill.method import DataSpec
from crossdistill.planning.preflight import data_spec


class TrainingData:
    """The known facts about the training data, and whether the method reads facts about single rows.

    Raises:
        SettingError: several arguments define the data.
    """

    def __init__(self, who: str, data: Dataset | None, targets: Tensor | None, rows: int | None, task: Task) -> None:
        if sum(argument is not None for argument in (data, targets, rows)) > 1:
            raise SettingError("data, targets and rows each describe the training data: pass one of them")
        self.who, self.ids_read, self._task = who, False, task
        self._known: DataSpec | None = None
        self._highest = 0
        if data is not None:
            self._known = data_spec(data)
        elif targets is not None:
            share = float(has_target(targets).double().mean()) if targets.ndim == 1 or task != "classes" else 1.0
            self._known = DataSpec(len(targets), 0, targets, None, share, task)
        elif rows is not None:
            self._known = DataSpec(rows, 0, task=task)
        if self._known is not None:
            ids = self._known.ids
            self._highest = self._known.rows - 1 if ids is None else int(ids.max())

    def check(self, ids: Tensor) -> None:
        """Refuse ids without a training row, if this needs no synchronisation with an accelerator."""
        if self.ids_read and ids.device.type == "cpu" and len(ids):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high > self._highest:
                raise ShapeError(f"ids are {low} to {high}; the training data have the ids 0 to {self._highest}")

    def spec(self, classes: int) -> DataSpec:
        """The `DataSpec` for a method whose student has this number of classes."""
        known = self._known or DataSpec(0, classes, task=self._task)
        classes = known.classes or classes
        spec = _Watched(
            known.rows, classes, known.targets, known.ids, known.labelled_fraction, known.task, known.domains
        )
        object.__setattr__(spec, "data", self)
        return spec

    def read(self, field: str) -> None:
        """Note that a method reads a field of single rows.

        Raises:
            SettingError: no training data were given.
        """
        if self._known is None:
            raise SettingError(
                f"{self.who} reads the {field} of the training data: pass data= (a Dataset), targets= (of all training "
                "rows) or rows= (their number) to the Distiller, and ids= with each batch"
            )
        self.ids_read = self.ids_read or field in ("rows", "ids")


class _Watched(DataSpec):
    """A `DataSpec` that records the fields of single rows that a method reads."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("rows", "targets", "ids"):
            object.__getattribute__(self, "data").read(name)
        return super().__getattribute__(name)

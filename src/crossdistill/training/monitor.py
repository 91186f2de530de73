"""Checks and logs the values of several steps together, since each check synchronises with the device."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossdistill.data.metric_names import NAMES
from crossdistill.errors import NonFiniteError
from crossdistill.method import Progress
from crossdistill.run_folder.loggers import Tracking
from crossdistill.stage import Stage

CHECK_EVERY = {"cpu": 1, "cuda": 50, "mps": 50}
"""Steps between two checks, by the type of device."""
IDS_SHOWN = 16
SKIPS_ALLOWED = 32
"""Consecutive steps that may be skipped because float16 overflowed: each halves the loss scale, which starts at 2¹⁶."""


@dataclass
class Monitor:
    """Collects the logged values of steps, and writes them to the metrics once they are checked to be finite."""

    stage: str
    kind: str
    """Type of device: "cpu", "cuda" or "mps"."""
    tracking: Tracking
    kept: Callable[[], str]
    """Returns a sentence for errors that names the kept checkpoint."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of the values logged in this epoch; part of a checkpoint, since an epoch may be resumed."""
    waiting: list[tuple[Tensor, Progress, Mapping[str, Tensor]]] = field(default_factory=list)
    skips: int = 0
    """Consecutive skipped steps so far."""
    loss: float = math.nan
    """Loss of the last step that was checked."""
    rows: int = 0
    """Training rows since this process started or resumed the stage."""

    def add(self, rows: Tensor, progress: Progress, logs: Mapping[str, Tensor]) -> bool:
        """Collect the values of one step; returns whether `check` is due."""
        self.waiting.append((rows, progress, logs))
        self.rows += len(rows)
        return len(self.waiting) >= CHECK_EVERY[self.kind] or progress.step + 1 == progress.steps

    def check(self) -> None:
        """Check and log the values collected so far.

        Raises:
            NonFiniteError: NaN or Inf in a step, or too many steps were skipped for it; names the sample ids.
        """
        if not self.waiting:
            return
        flat = torch.stack([value.float().reshape(()) for _, _, logs in self.waiting for value in logs.values()])
        numbers = iter(flat.tolist())
        for rows, progress, logs in self.waiting:
            values = {name: next(numbers) for name in logs}
            bad = sorted(name for name, value in values.items() if not math.isfinite(value))
            self.skips = self.skips + 1 if values.get("skipped") else 0
            bad += [f"the gradients of {self.skips} steps in a row"] if self.skips > SKIPS_ALLOWED else []
            if bad:
                where = f"stage {self.stage!r}, epoch {progress.epoch}, step {progress.step}"
                raise NonFiniteError(
                    f"{where}: NaN or Inf in {', '.join(bad)}; the batch holds the sample ids {shown(rows)}. "
                    f"{self.kept()}. Check these samples; if they are valid, lower the learning rate or set "
                    "clip_norm, and start again in another folder"
                )
            self.loss = values["loss"]
            self.tracking.log("step", self.stage, progress.epoch, progress.step, values)
            for name, value in values.items():
                self.totals[name] = self.totals.get(name, 0.0) + value
        self.waiting.clear()

    def end_epoch(self, progress: Progress, summary: Callable[[Mapping[str, float]], Mapping[str, float]]) -> None:
        """Log a method's summary of the sums over an epoch, after all its steps are checked."""
        values = summary(self.totals)
        if values:
            self.tracking.log("epoch", self.stage, progress.epoch, progress.steps, values)
        self.totals.clear()


class Pace:
    """The text beside a stage's progress bar: epoch, loss, validation and speed."""

    def __init__(self, stage: Stage, monitor: Monitor) -> None:
        self._stage, self._epochs = stage.name, stage.epochs
        self._monitor = monitor
        self._began = time.monotonic()
        self._validation = ""

    def validated(self, epoch: int, steps: int, validation: Mapping[str, int | float]) -> None:
        """Log validation values, the time and the speed."""
        tracking = self._monitor.tracking
        tracking.log("validation", self._stage, epoch, steps, validation)
        tracking.clock(self._stage, epoch, time.monotonic() - self._began, self._speed())
        self._validation = f", validation: {metrics_text(validation)}"

    def _speed(self) -> float:
        """Training rows per second since this process started the stage; validation and checkpoints count as time."""
        return self._monitor.rows / max(time.monotonic() - self._began, 1e-9)

    def text(self, epoch: int) -> str:
        """One line for the display."""
        speed = f"{self._speed():,.0f} rows/s"
        return f"epoch {epoch + 1}/{self._epochs}, loss {self._monitor.loss:.4g}{self._validation}, {speed}"


def metrics_text(validation: Mapping[str, int | float]) -> str:
    """Validation values as text: losses by part, and the accuracy."""
    metrics = {name: value for name, value in validation.items() if name in NAMES}
    losses = {name: value for name, value in validation.items() if name != "epoch" and name not in metrics}
    # A single part is shown without its name.
    parts = [f"loss {name if len(losses) > 1 else ''}".strip() + f" {value:.4f}" for name, value in losses.items()]
    parts += [f"{name} {value:.3f}" for name, value in metrics.items()]
    return ", ".join(parts)


def shown(rows: Tensor) -> str:
    """The first sample ids, and the number of the rest, as text."""
    more = f" and {len(rows) - IDS_SHOWN} more" if len(rows) > IDS_SHOWN else ""
    return f"{rows[:IDS_SHOWN].tolist()}{more}"

"""The numbers of the last steps, looked at together: on an accelerator each look waits for it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossdistill.errors import NonFiniteError
from crossdistill.method import Progress
from crossdistill.run_folder.loggers import Tracking
from crossdistill.stage import Stage

LOOK_EVERY = {"cpu": 1, "cuda": 50, "mps": 50}
"""Steps between two looks, by the kind of device."""
IDS_SHOWN = 16
SKIPS_ALLOWED = 32
"""Steps in a row that may be left out because float16 overflowed: each halves the loss scale, which starts at 2¹⁶."""


@dataclass
class Watch:
    """Keeps the terms of each step until they are looked at: then they are tracked, if all of them are finite."""

    stage: str
    kind: str
    """Of device."""
    tracking: Tracking
    kept: Callable[[], str]
    """What is left when a run stops here, as a sentence."""
    totals: dict[str, float] = field(default_factory=dict)
    """What the steps of this epoch logged, added up; part of a checkpoint, since an epoch may be resumed."""
    waiting: list[tuple[Tensor, Progress, Mapping[str, Tensor]]] = field(default_factory=list)
    skips: int = 0
    """Steps in a row that were left out so far."""
    loss: float = math.nan
    """Of the last step that was looked at."""
    rows: int = 0
    """Training rows since this process went on with the stage."""

    def add(self, rows: Tensor, progress: Progress, logs: Mapping[str, Tensor]) -> bool:
        """Take one step's numbers; whether it is time to look."""
        self.waiting.append((rows, progress, logs))
        self.rows += len(rows)
        return len(self.waiting) >= LOOK_EVERY[self.kind] or progress.step + 1 == progress.steps

    def look(self) -> None:
        """Track all that waits.

        Raises:
            NonFiniteError: NaN or Inf in a step, or too many steps were skipped for it; names the sample ids.
        """
        if not self.waiting:
            return
        flat = torch.stack([value.float().reshape(()) for _, _, logs in self.waiting for value in logs.values()])
        numbers = iter(flat.tolist())
        for rows, progress, logs in self.waiting:
            found = {name: next(numbers) for name in logs}
            bad = sorted(name for name, value in found.items() if not math.isfinite(value))
            self.skips = self.skips + 1 if found.get("skipped") else 0
            bad += [f"the gradients of {self.skips} steps in a row"] if self.skips > SKIPS_ALLOWED else []
            if bad:
                where = f"stage {self.stage!r}, epoch {progress.epoch}, step {progress.step}"
                raise NonFiniteError(
                    f"{where}: NaN or Inf in {', '.join(bad)}; the batch holds the sample ids {shown(rows)}. "
                    f"{self.kept()}. Look at these samples; if they are sound, lower the learning rate or set "
                    "clip_norm, and start again in another folder"
                )
            self.loss = found["loss"]
            self.tracking.log("step", self.stage, progress.epoch, progress.step, found)
            for name, value in found.items():
                self.totals[name] = self.totals.get(name, 0.0) + value
        self.waiting.clear()

    def end_epoch(self, progress: Progress, summary: Callable[[Mapping[str, float]], Mapping[str, float]]) -> None:
        """Track what a method makes of the sums over an epoch, all of whose steps were looked at."""
        values = summary(self.totals)
        if values:
            self.tracking.log("epoch", self.stage, progress.epoch, progress.steps, values)
        self.totals.clear()


class Pace:
    """Where a stage is and how fast: the text beside its bar."""

    def __init__(self, stage: Stage, watch: Watch) -> None:
        self._stage, self._epochs = stage.name, stage.epochs
        self._watch = watch
        self._began = time.monotonic()
        self._validation = ""

    def validated(self, epoch: int, steps: int, found: Mapping[str, int | float]) -> None:
        """Track what a validation gave, and when."""
        tracking = self._watch.tracking
        tracking.log("validation", self._stage, epoch, steps, found)
        tracking.clock(self._stage, epoch, time.monotonic() - self._began, self._speed())
        self._validation = f", validation: {metrics_text(found)}"

    def _speed(self) -> float:
        """Training rows a second since this process went on with the stage, validation and checkpoints in the time."""
        return self._watch.rows / max(time.monotonic() - self._began, 1e-9)

    def text(self, epoch: int) -> str:
        """For people."""
        speed = f"{self._speed():,.0f} rows/s"
        return f"epoch {epoch + 1}/{self._epochs}, loss {self._watch.loss:.4g}{self._validation}, {speed}"


def metrics_text(found: Mapping[str, int | float]) -> str:
    """Validation values as people read them: losses by part, and the accuracy."""
    losses = {name: value for name, value in found.items() if name not in ("epoch", "accuracy")}
    # One part alone needs no name.
    parts = [f"loss {name if len(losses) > 1 else ''}".strip() + f" {value:.4f}" for name, value in losses.items()]
    parts += [f"accuracy {found['accuracy']:.3f}"] if "accuracy" in found else []
    return ", ".join(parts)


def shown(rows: Tensor) -> str:
    """The first sample ids, and how many more there are."""
    more = f" and {len(rows) - IDS_SHOWN} more" if len(rows) > IDS_SHOWN else ""
    return f"{rows[:IDS_SHOWN].tolist()}{more}"

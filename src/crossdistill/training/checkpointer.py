"""Checkpoints of the running stage (`Saver`), and its validation values and best weights (`StageState`)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.autograd.mapped import MappedTensor
from crossdistill.errors import ResumeError
from crossdistill.method import STUDENT
from crossdistill.planning.plan import Job
from crossdistill.recipe import Recipe
from crossdistill.run_folder.checkpoint import (
    Checkpoint,
    moving,
    newest_checkpoint,
    newest_name,
    restore,
    save_checkpoint,
)
from crossdistill.run_folder.loggers import Tracking
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import counted
from crossdistill.training.monitor import metrics_text
from crossdistill.training.step import Training


def selected_parts(job: Job) -> dict[str, dict[str, nn.Module]]:
    """Groups of modules, each with its own best epoch: every part of the method, and the student with the rest."""
    modules = job.modules()
    parts: dict[str, dict[str, nn.Module]] = {name: {name: module} for name, module in job.method.parts().items()}
    rest = {name: module for name, module in modules.items() if name != "method" or not parts}
    return {**parts, STUDENT: rest} if rest else parts


@dataclass
class StageState:
    """Validation values of a running stage, and the best weights of each part that is selected separately.

    Best weights need as much memory as the weights that train and are read once, at the end: large tensors are kept in
    files of `folder`.
    """

    folder: Path
    values: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    best: dict[str, MappedTensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of the values logged by the steps of the running epoch."""
    seconds: float = 0.0
    """Training time before the last resume."""
    select_by: str | None = None
    """The metric by which the student is selected; None: its loss. A value of a rising metric is kept negated."""

    def keep_best(
        self, epoch: int, validation: Mapping[str, float], parts: Mapping[str, Mapping[str, nn.Module]]
    ) -> None:
        """Keep the weights of each part whose validation value is strictly lower than in all earlier epochs."""
        for name, value in validation.items():
            if name in parts and (name not in self.values or value < self.values[name]):
                self.values[name], self.epochs[name] = value, epoch
                self._keep({f"best/{name}/{key}": tensor for key, tensor in moving(parts[name]).items()})

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the best weights from a checkpoint's tensors."""
        self._keep({key: value for key, value in tensors.items() if key.startswith("best/")})

    @torch.no_grad()
    def load_best(self, parts: Mapping[str, Mapping[str, nn.Module]]) -> None:
        """Load the best weights into each part that has any."""
        for name in self.values:
            for key, target in moving(parts[name]).items():
                self.best[f"best/{name}/{key}"].copy_to(target)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            # Free the previous best, and its file, before the new one is allocated.
            self.best.pop(name, None)
            self.best[name] = MappedTensor.copy(value.detach(), self.folder)

    def chosen(self) -> dict[str, dict[str, int | float]]:
        """The epoch and the value that each part was selected by."""
        return {name: {"epoch": self.epochs[name], "value": value} for name, value in self.values.items()}

    def note(self, seconds: float, epochs: int) -> str:
        """One line for the display: epochs of the stage, seconds, and the selected validation values."""
        if not self.history:
            return "no epochs"
        values = ", ".join(
            f"{name} {chosen['value']:.4f} (epoch {chosen['epoch']}{self._accuracy(name, chosen['epoch'])})"
            for name, chosen in self.chosen().items()
        )
        by = "lowest validation loss" if self.select_by is None else f"best validation {self.select_by}"
        kind = f"{by}: {values}" if values else f"last validation: {metrics_text(self.history[-1])}"
        return f"{counted(epochs, 'epoch')} in {seconds:.1f} s, {kind}"

    def _accuracy(self, name: str, epoch: int | float) -> str:
        """The student's validation accuracy in the selected epoch, as text; empty for other parts."""
        values = next((values for values in self.history if values["epoch"] == epoch and name == STUDENT), {})
        return f", accuracy {values['accuracy']:.3f}" if "accuracy" in values else ""


class Saver:
    """Writes checkpoints of the running stage when they are due, and restores the newest one.

    Several ranks write one checkpoint together; by time, they do so only after epochs.
    """

    def __init__(
        self,
        recipe: Recipe,
        job: Job,
        training: Training,
        state: StageState,
        folder: Path,
        devices: Devices,
        tracking: Tracking,
    ) -> None:
        self._settings = recipe.checkpoints
        self._job, self._training, self._state = job, training, state
        self._folder, self._devices, self._tracking = folder, devices, tracking
        self._began = self._last = time.monotonic()

    def seconds(self) -> float:
        """Seconds spent on this stage over all resumes, including the method's measuring pass before training."""
        return self._state.seconds + time.monotonic() - self._began

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        if self._settings.steps is not None:
            return (step + 1) % self._settings.steps == 0
        return self._devices.ranks == 1 and self._minutes_are_over()

    def due_after_epoch(self) -> bool:
        """Whether to save after this epoch."""
        return self._settings.steps is not None or self._devices.same(str(self._minutes_are_over())) == "True"

    def save(self, epoch: int, step: int) -> None:
        """Write a checkpoint from which `step` is the next step."""
        self._training.agree()
        state = {
            "key": self._job.key,
            "training": self._training.state(),
            "rng": self._devices.random_state(),
            "best": {"values": self._state.values, "epochs": self._state.epochs},
            "history": self._state.history,
            "totals": self._state.totals,
            "seconds": self.seconds(),
            "metrics": self._tracking.position(),
        }
        best = self._state.best
        tensors = {**moving(self._job.modules()), **{name: kept.tensor for name, kept in best.items()}}
        if self._devices.is_main:
            save_checkpoint(self._folder, Checkpoint(self._job.index, epoch, step, tensors, state), self._settings.keep)
        for kept in best.values():
            kept.release()
        self._last = time.monotonic()

    def kept(self) -> str:
        """A sentence that names the checkpoint from which the run can be resumed."""
        name = newest_name(self._folder)
        return (
            "No checkpoint of this stage has been written yet; the results of earlier stages are kept"
            if name is None
            else f"The last good checkpoint is kept: {self._folder / name}"
        )

    def resume(self) -> tuple[int, int]:
        """Restore the newest checkpoint of this stage, and return the next epoch and step.

        Raises:
            ResumeError: the checkpoints belong to a stage with other data, first weights or code.
        """
        saved = newest_checkpoint(self._folder)
        if saved is None or saved.stage != self._job.index:
            # Remove the metrics of steps that are computed again.
            self._tracking.back_to(self._tracking.finished_bytes)
            return 0, 0
        if saved.state["key"] != self._job.key:
            raise ResumeError(
                f"{self._folder} holds checkpoints of another stage {self._job.stage.name!r}: its recipe is the same, "
                "but the data, the weights that it starts from, or the code of your networks or methods have changed. "
                "Start again in another folder"
            )
        restore(self._job.modules(), saved.tensors)
        self._training.load_state(saved.state["training"])
        self._tracking.back_to(saved.state["metrics"])
        state = self._state
        state.values, state.epochs = dict(saved.state["best"]["values"]), dict(saved.state["best"]["epochs"])
        state.take(saved.tensors)
        state.totals.update(saved.state["totals"])
        state.history, state.seconds = list(saved.state["history"]), float(saved.state["seconds"])
        # Last, since the steps before may have drawn random numbers.
        self._devices.restore_random_state(saved.state["rng"])
        return saved.epoch, saved.step

    def _minutes_are_over(self) -> bool:
        return time.monotonic() - self._last > 60 * self._settings.minutes

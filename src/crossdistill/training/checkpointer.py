"""Saver: what a running stage has found and where it is, saved when it is time, and brought back."""

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


def parts_of(job: Job) -> dict[str, dict[str, nn.Module]]:
    """What is selected by itself: the method's own parts, and the learner with all else that trains."""
    modules = job.modules()
    own: dict[str, dict[str, nn.Module]] = {name: {name: module} for name, module in job.method.parts().items()}
    rest = {name: module for name, module in modules.items() if name != "method" or not own}
    return {**own, STUDENT: rest} if rest else own


@dataclass
class Found:
    """What a stage has found so far: validation values, and the best state of each part selected by itself.

    A best state takes as much room as what trains and is read once, at the end: large tensors of it lie in files of
    this folder.
    """

    folder: Path
    values: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    best: dict[str, MappedTensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    """What the steps of the running epoch logged, added up."""
    seconds: float = 0.0
    """Spent before the last resume."""

    def consider(self, epoch: int, found: Mapping[str, float], parts: Mapping[str, Mapping[str, nn.Module]]) -> None:
        """Keep the parts that are strictly better than ever before."""
        for name, value in found.items():
            if name in parts and (name not in self.values or value < self.values[name]):
                self.values[name], self.epochs[name] = value, epoch
                self._keep({f"best/{name}/{key}": tensor for key, tensor in moving(parts[name]).items()})

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the best states out of a checkpoint."""
        self._keep({key: value for key, value in tensors.items() if key.startswith("best/")})

    @torch.no_grad()
    def bring_back(self, parts: Mapping[str, Mapping[str, nn.Module]]) -> None:
        """Leave the best state in each part that has one."""
        for name in self.values:
            for key, target in moving(parts[name]).items():
                self.best[f"best/{name}/{key}"].copy_to(target)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            # What was best before goes first, with its file.
            self.best.pop(name, None)
            self.best[name] = MappedTensor.copy(value.detach(), self.folder)

    def chosen(self) -> dict[str, dict[str, int | float]]:
        """The epoch and the value that each part was selected by."""
        return {name: {"epoch": self.epochs[name], "value": value} for name, value in self.values.items()}

    def note(self, seconds: float) -> str:
        """What was found, in one line."""
        if not self.history:
            return "no epochs"
        values = ", ".join(
            f"{name} {one['value']:.4f} (epoch {one['epoch']}{self._accuracy(name, one['epoch'])})"
            for name, one in self.chosen().items()
        )
        kind = f"lowest validation loss: {values}" if values else f"last validation: {metrics_text(self.history[-1])}"
        return f"{counted(len(self.history), 'epoch')} in {seconds:.1f} s, {kind}"

    def _accuracy(self, name: str, epoch: int | float) -> str:
        """The learner's in the epoch that it was selected from."""
        found = next((one for one in self.history if one["epoch"] == epoch and name == STUDENT), {})
        return f", accuracy {found['accuracy']:.3f}" if "accuracy" in found else ""


class Saver:
    """Saves the running stage when it is time, and brings it back. Several ranks save together, after epochs."""

    def __init__(
        self,
        recipe: Recipe,
        job: Job,
        training: Training,
        state: Found,
        folder: Path,
        devices: Devices,
        tracking: Tracking,
    ) -> None:
        self._settings = recipe.checkpoints
        self._job, self._training, self._state = job, training, state
        self._folder, self._where, self._tracking = folder, devices, tracking
        self._began = self._last = time.monotonic()

    def seconds(self) -> float:
        """Time spent on this stage, with what its method measures before it trains, over all resumes."""
        return self._state.seconds + time.monotonic() - self._began

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        if self._settings.steps is not None:
            return (step + 1) % self._settings.steps == 0
        return self._where.ranks == 1 and self._over()

    def due_after_epoch(self) -> bool:
        """Whether to save after this epoch."""
        return self._settings.steps is not None or self._where.same(str(self._over())) == "True"

    def save(self, epoch: int, step: int) -> None:
        """Write a checkpoint from which the given step is the next."""
        self._training.agree()
        state = {
            "key": self._job.key,
            "training": self._training.state(),
            "rng": self._where.random_state(),
            "best": {"values": self._state.values, "epochs": self._state.epochs},
            "history": self._state.history,
            "totals": self._state.totals,
            "seconds": self.seconds(),
            "metrics": self._tracking.position(),
        }
        best = self._state.best
        tensors = {**moving(self._job.modules()), **{name: one.tensor for name, one in best.items()}}
        if self._where.is_main:
            save_checkpoint(self._folder, Checkpoint(self._job.index, epoch, step, tensors, state), self._settings.keep)
        for one in best.values():
            one.release()
        self._last = time.monotonic()

    def kept(self) -> str:
        """Where one could go on from, as a sentence."""
        name = newest_name(self._folder)
        return (
            "No checkpoint of this stage had been written yet; what earlier stages trained is kept"
            if name is None
            else f"The last good checkpoint is kept: {self._folder / name}"
        )

    def resume(self) -> tuple[int, int]:
        """Take up the newest checkpoint of this stage; gives the epoch and step that come next."""
        saved = newest_checkpoint(self._folder)
        if saved is None or saved.stage != self._job.index:
            # Lines of steps that are made again now.
            self._tracking.back_to(self._tracking.settled)
            return 0, 0
        if saved.state["key"] != self._job.key:
            raise ResumeError(
                f"{self._folder} holds checkpoints of another stage {self._job.stage.name!r}: its recipe is the same, "
                "but the data, weights that it starts from, or the code of your networks or methods, are not what they "
                "were. Start anew in another folder"
            )
        restore(self._job.modules(), saved.tensors)
        self._training.load_state(saved.state["training"])
        self._tracking.back_to(saved.state["metrics"])
        found = self._state
        found.values, found.epochs = dict(saved.state["best"]["values"]), dict(saved.state["best"]["epochs"])
        found.take(saved.tensors)
        found.totals.update(saved.state["totals"])
        found.history, found.seconds = list(saved.state["history"]), float(saved.state["seconds"])
        # Last of all: whatever was done to get here may have drawn random numbers.
        self._where.restore_random_state(saved.state["rng"])
        return saved.epoch, saved.step

    def _over(self) -> bool:
        return time.monotonic() - self._last > 60 * self._settings.minutes

"""Inputs of the benchmarks: the AV-MNIST networks and masks at their published sizes, with random data.

Time and memory of a step depend on shapes, not on values, so the data are random and nothing is downloaded. There are
fewer rows than in AV-MNIST.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from reference_way import AppliedMask, Data, Member, PlainMask, Reference
from torch import Tensor, nn

from crossdistill.bank.bank import BankSettings
from crossdistill.data.dataset import Dataset
from crossdistill.method import Progress
from crossdistill.methods.specialise import Specialise
from crossdistill.nets.mask import MaskNet2d
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.planning.plan import Job, Plan
from crossdistill.planning.sources import explained
from crossdistill.recipe import Recipe
from crossdistill.recipes import make
from crossdistill.run_folder.loggers import Tracking
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Quiet
from crossdistill.training.checkpointer import StageState, selected_parts
from crossdistill.training.monitor import Monitor
from crossdistill.training.runner import validate
from crossdistill.training.step import Training

FULL_ROWS = 56_000
"""Training and validation rows of AV-MNIST."""
SHAPES = {"image": (1, 28, 28), "audio": (1, 112, 112)}
CLASSES = 10


def random_data(train: int, validation: int, only: Sequence[str] = tuple(SHAPES)) -> Dataset:
    """Random rows of the shapes of AV-MNIST; the test split has two rows, which are not read."""
    source = torch.Generator().manual_seed(0)
    rows = train + validation + 2
    return Dataset.from_arrays(
        "random",
        {name: torch.randn(rows, *SHAPES[name], generator=source) for name in only},
        # Every class that occurs is among the training rows, however few they are.
        torch.arange(rows) % min(CLASSES, train),
        classes=[str(number) for number in range(CLASSES)],
        splits=dict(
            zip(("train", "validation", "test"), torch.arange(rows).split([train, validation, 2]), strict=True)
        ),
    )


def av_mnist(student: str, batch_size: int, rows: int, device: torch.device, settings: Sequence[str] = ()) -> Recipe:
    """The recipe `mst-distill-release`, whose numbers the reference computes too, with other `settings`.

    The limits of banks are scaled from all rows of AV-MNIST to `rows`, so that the same outputs are banked.
    """
    sizes = [f"student={student}", f"batch_size={batch_size}", f"device={device.type}"]
    recipe = make("av-mnist/mst-distill-release", [*sizes, *settings], 0)
    defaults = BankSettings()
    share = rows / FULL_ROWS
    bank = BankSettings(budget=int(defaults.budget * share), memory=int(defaults.memory * share))
    return recipe.model_copy(update={"bank": bank})


class Course:
    """One stage, run epoch by epoch: the loop of `crossdistill.training.runner.fit`, without its files."""

    def __init__(self, plan: Plan, job: Job, device: torch.device, folder: Path) -> None:
        self._devices = Devices(device)
        folder.mkdir(parents=True, exist_ok=True)
        self.job, self.bank_seconds = attach_banks(job, plan.recipe.bank, folder / "banks", self._devices, Quiet())
        frozen = [*plan.members.values(), *(other.method for other in plan.jobs)]
        self.training = Training(self.job, frozen, self._devices, folder)
        self._tracking = Tracking(folder)
        self._monitor = Monitor(job.stage.name, device.type, self._tracking, lambda: "")
        self._state, self._epoch = StageState(folder), 0

    def close(self) -> None:
        """Close its files."""
        self._tracking.__exit__(None, None, None)

    def sources(self) -> str:
        """The outputs that are banked and those that are computed live, as text."""
        return "; ".join(explained(self.job.choices))

    def epoch(self) -> dict[str, float]:
        """Run one epoch with its validation; returns the values of `validate`."""
        job = self.job
        for step, (rows, parts) in enumerate(self.training.batches(job.order.epoch(self._epoch), self._epoch)):
            progress = Progress(self._epoch, job.stage.epochs, step, job.order.steps, self._devices.gather)
            if self._monitor.add(rows, progress, self.training.step(rows, progress, parts)):
                self._monitor.check()
        self._monitor.check()
        losses = validate(job, self.training, self._devices)
        if job.stage.select == "best":
            self._state.keep_best(self._epoch, losses, selected_parts(job))
        self._epoch += 1
        return losses


def job_of(plan: Plan, stage: str) -> Job:
    """A stage of a plan, by its name."""
    return next(job for job in plan.jobs if job.stage.name == stage)


def masks_mb(plan: Plan) -> float:
    """Memory of the weights of a plan's masks, in MB; 0 if no stage trains masks."""
    weights = [weight for job in plan.jobs if job.stage.name == "specialise" for weight in job.method.parameters()]
    return sum(weight.numel() * weight.element_size() for weight in weights) / 2**20


def reference_of(plan: Plan, device: torch.device) -> Reference:
    """The reference implementation with copies of a plan's networks, masks and gate in their present state."""
    members = {}
    for name, network in plan.members.items():
        members[name] = Member(copy.deepcopy(network.module).requires_grad_(True).to(device), network.reads)
    masks: list[AppliedMask] = []
    gate: nn.Module = nn.Identity()
    for job in plan.jobs:
        method = job.method
        if isinstance(job.stage.method, Specialise):
            for teacher, taps in job.stage.method.taps.items():
                masks += [AppliedMask(teacher, tap, _plain(method.mask(teacher, tap)).to(device)) for tap in taps]
        if job.stage.method.name == "route":
            gate = copy.deepcopy(method.gate).requires_grad_(True)
    learner = plan.recipe.learner
    teachers = {name: member for name, member in members.items() if name != learner}
    rate = plan.jobs[0].stage.optimizer.learning_rate
    return Reference(members[learner], teachers, masks, gate.to(device), rate)


def in_batches(dataset: Dataset, rows: Tensor, size: int, device: torch.device) -> list[Data]:
    """Batches of rows in the form that the reference takes."""
    batches = []
    for part in rows.split(size):
        batch = dataset.batch(part).to(device)
        assert batch.targets is not None
        batches.append((batch.inputs, batch.targets))
    return batches


def _plain(mask: nn.Module) -> PlainMask:
    maps = isinstance(mask, MaskNet2d)
    plain = PlainMask(mask.embed.in_features, mask.mha.embed_dim, mask.mha.num_heads, maps=maps)
    plain.load_state_dict(mask.state_dict())
    return plain

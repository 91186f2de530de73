"""One temporary stage of one method on toy data, built by the same code as a run."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crossdistill.batch import MISSING_TARGET, Batch
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.row_source import tensors_in_memory
from crossdistill.errors import ApplicabilityError
from crossdistill.method import STUDENT, DataSpec, MethodConfig, Progress, Step
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.planning.plan import Job, prepare
from crossdistill.recipe import Recipe
from crossdistill.run_folder.checkpoint import flatten
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Quiet
from crossdistill.stage import OptimizerConfig, Stage
from crossdistill.testing.toy import toy_models
from crossdistill.training.step import Training

Settings = MethodConfig | Callable[[Sequence[str]], MethodConfig]
Trains = Literal["student", "method", "all"]

ROWS = 24
"""Rows of a batch in the checks: divisible into 2, 3 and 4 micro-batches, but not into 5."""


@dataclass(frozen=True)
class Contract:
    """A method's settings, with the networks and data of its checks; `given` lists the student first.

    `stage` are further settings of the stage, such as its weighting.
    """

    settings: Settings
    dataset: Dataset
    trains: Trains = "student"
    given: Mapping[str, Network] | None = None
    stage: Mapping[str, Any] = field(default_factory=dict)

    def members(self, teachers: int, *, normalised: bool = False) -> dict[str, Network]:
        """New copies of the student and of the first teachers, `teachers` in number."""
        if self.given is None:
            return toy_models(self.dataset, teachers, normalised=normalised)
        return dict(list(copy.deepcopy(dict(self.given)).items())[: teachers + 1])

    def config(self, teachers: Sequence[str]) -> MethodConfig:
        """The settings for teachers of these names."""
        return self.settings if isinstance(self.settings, MethodConfig) else self.settings(tuple(teachers))

    @cached_property
    def numbers(self) -> list[int]:
        """Numbers of teachers that the method accepts, among 1, 2 and 3 (or 1, 2 and all given ones); largest first.

        Raises:
            ApplicabilityError: it accepts none of them.
        """
        most = 3 if self.given is None else len(self.given) - 1
        accepted = []
        for number in sorted({most, 2, 1} & set(range(most + 1)), reverse=True):
            try:
                self.build(number)
            except ApplicabilityError as error:
                refusal = error
            else:
                accepted.append(number)
        if not accepted:
            raise ApplicabilityError(f"it accepts neither one nor several teachers: {refusal}")
        return accepted

    def build(self, teachers: int) -> None:
        """Build the method for a number of teachers.

        Raises:
            ApplicabilityError: the method does not accept this number.
        """
        members = self.members(teachers)
        student, *others = [network.probe(self.dataset.example()) for network in members.values()]
        names = list(members)[1:]
        specs: dict[str, OutputSpec] = dict(zip(names, others, strict=True))
        train = self.dataset.splits["train"]
        data = DataSpec(len(train), len(self.dataset.classes), self.dataset.targets[train], train)
        self.config(names).build(student, specs, data)


class Rehearsal:
    """A method with its networks, ready to train; SGD with momentum, because Adam amplifies rounding errors."""

    def __init__(
        self,
        contract: Contract,
        dataset: Dataset | None = None,
        *,
        teachers: int | None = None,
        normalised: bool = False,
        devices: Devices | None = None,
        seed: int = 0,
        **stage: Any,
    ) -> None:
        members = contract.members(contract.numbers[0] if teachers is None else teachers, normalised=normalised)
        student, *others = members
        trains = {"student": (STUDENT,), "method": (), "all": (STUDENT, *others)}[contract.trains]
        settings: dict[str, Any] = {
            "name": "rehearsal",
            "method": contract.config(others),
            "epochs": 1,
            "batch_size": ROWS,
            "trains": trains,
            "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        }
        recipe = Recipe(
            name="rehearsal",
            data=contract.dataset if dataset is None else dataset,
            student=members[student],
            student_name=student,
            teachers={name: members[name] for name in others},
            stages=(Stage.model_validate(settings | dict(contract.stage) | stage),),
            seed=seed,
        )
        assert isinstance(recipe.data, Dataset)
        self.dataset = recipe.data
        self.plan = prepare(recipe, recipe.data, torch.device("cpu"))
        self.job: Job = self.plan.jobs[0]
        self.training = Training(self.job, self.plan.members.values(), devices or Devices(torch.device("cpu")))
        self.progress = Progress(0, 1, 0, self.job.order.steps, self.training.devices.gather)

    @property
    def teachers(self) -> dict[str, Network]:
        """The teachers' networks, by name."""
        return {name: network for name, network in self.plan.members.items() if name != self.plan.recipe.learner}

    def rows(self, step: int = 0) -> Tensor:
        """The rows of one step, in the order of a run (only labelled rows, where the method iterates over these)."""
        return next(self.job.order.epoch(0, step))

    def batch(self, rows: Tensor | None = None) -> Batch:
        """The batch of these rows, by default of the first step, with the modalities that live networks read."""
        return self.job.batch(self.rows() if rows is None else rows, self.progress.epoch)

    def read_banks(self, folder: Path) -> None:
        """Fill banks in a folder, and read from them according to the stage's choices, as a run does."""
        devices = self.training.devices
        self.job, _ = attach_banks(self.job, self.plan.recipe.bank, folder, devices, Quiet())
        self.training = Training(self.job, self.plan.members.values(), devices)

    def forward(self, batch: Batch) -> Step:
        """The method's own step, from the same random state each time."""
        torch.manual_seed(0)
        step: Step = self.job.method(batch, self.job.student, self.job.teachers, self.progress)
        return step

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Every term as in the loss: reduced and weighted."""
        step = self.forward(batch)
        return {name: term.reduced(batch.total_rows) * term.weight for name, term in step.terms.items()}

    def loss(self, batch: Batch) -> Tensor:
        """The sum of the terms."""
        return torch.stack([value.reshape(()) for value in self.terms(batch).values()]).sum()

    def gradients(self, batch: Batch) -> list[Tensor]:
        """The gradients of all parameters that train; zeros where there is none."""
        gradients = torch.autograd.grad(self.loss(batch), self.training.parameters, allow_unused=True)
        pairs = zip(gradients, self.training.parameters, strict=True)
        return [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in pairs]

    def step(self, rows: Tensor, number: int = 0) -> dict[str, Tensor]:
        """One step of the optimizer, as in a run."""
        return self.training.step(rows, replace(self.progress, step=number))

    @torch.no_grad()
    def validated(self) -> dict[str, Tensor]:
        """The validation values of the method's parts, on the rows of the first step."""
        self.training.eval_mode()
        return dict(self.job.method.validate(self.batch(), self.job.student, self.job.teachers))

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights and buffers that can change."""
        return flatten(self.job.modules())


def with_absent(dataset: Dataset, fill: float) -> Dataset:
    """The same data, where every modality is missing in some rows; its values there are `fill`.

    The row number modulo (modalities + 2) selects the missing modality; for the last two residues none is missing.
    """
    names = list(dataset.inputs)
    residue = torch.arange(len(dataset)) % (len(names) + 2)
    present = {name: residue != number for number, name in enumerate(names)}
    inputs = {name: rows.clone() for name, rows in tensors_in_memory(dataset.inputs, "with_absent").items()}
    for name, tensor in inputs.items():
        tensor[~present[name]] = fill
    return replace(dataset, inputs=inputs, present=present)


def with_views(dataset: Dataset, views: int = 2) -> Dataset:
    """The same data, where each training row has several seeded views."""
    noisy = {name: Variation(noise=0.3) for name, value in dataset.inputs.items() if value.dtype.is_floating_point}
    return replace(dataset, augmentation=Variations(inputs=noisy, views=views))


def with_labels_hidden(dataset: Dataset, shift: int = 0) -> Dataset:
    """The same data, where the student may not use every second label; hidden labels are shifted by `shift` classes."""
    hidden = torch.arange(len(dataset)) % 2 == 1
    moved = (dataset.targets + shift) % len(dataset.classes)
    targets = torch.where(hidden & (dataset.targets != MISSING_TARGET), moved, dataset.targets)
    return replace(dataset, targets=targets, labelled=~hidden)


def with_targets_missing(dataset: Dataset) -> Dataset:
    """The same data, where every second row has no target at all."""
    hidden = torch.arange(len(dataset)) % 2 == 1
    return replace(dataset, targets=dataset.targets.masked_fill(hidden, MISSING_TARGET))

"""A reference implementation of MST-Distill that computes as the released code does, written from its description.

It keeps the costs of that code: each mask has its own full pass of its teacher and its own optimizer; masks are
computed in the plain form, with all attention weights; the backward pass runs through frozen layers and accumulates
gradients that are not used; in the third stage all masks of a teacher stay applied, one after the other; and the
tensors of a step live until the next step has computed its own. It omits costs of other kinds: data as Python lists,
unused metrics, copies of the inputs. Its numbers are those of the library's recipe `mst-distill-release`
(tests/test_benchmarks.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional

TEMPERATURE = 4.0

Data = tuple[Mapping[str, Tensor], Tensor]
"""Inputs by modality, and targets."""


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """T² · KL(target ‖ logits) of softened logits, mean over rows, in nats."""
    softened = functional.log_softmax(logits / TEMPERATURE, dim=1)
    wanted = functional.softmax(target / TEMPERATURE, dim=1)
    return functional.kl_div(softened, wanted, reduction="batchmean") * TEMPERATURE**2


class PlainMask(nn.Module):
    """Embedding, self-attention with its weights, linear layer, sigmoid; maps are first reduced over space.

    The names of its parameters are those of `crossdistill.nets.mask`.
    """

    def __init__(self, length: int, width: int, heads: int, *, maps: bool) -> None:
        super().__init__()
        if maps:
            self.spatial_reduce = nn.Module()
            self.spatial_reduce.downsample = nn.Sequential(
                nn.Conv2d(length, length, 3, stride=2, padding=1, groups=length, bias=False),
                nn.Conv2d(length, length, 1, bias=False),
                nn.BatchNorm2d(length),
                nn.ReLU(),
            )
        self.maps = maps
        self.embed = nn.Linear(length, length * width)
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def forward(self, value: Tensor) -> Tensor:
        """The mask (B, L)."""
        vector = self.spatial_reduce.downsample(value).mean(dim=(2, 3)) if self.maps else value.flatten(1)
        tokens = self.embed(vector).view(len(vector), vector.shape[1], -1)
        attended, _ = self.mha(tokens, tokens, tokens)
        return torch.sigmoid(self.fc(attended).squeeze(-1))


@dataclass
class Member:
    """A network and the modalities that it reads, in the order of its arguments."""

    module: nn.Module
    reads: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of inputs by modality."""
        logits: Tensor = self.module(*(inputs[name] for name in self.reads))
        return logits

    def apply(self, tap: str, mask: nn.Module) -> Callable[[], None]:
        """Multiply the output of a layer by its mask; returns the function that ends this."""

        def multiply(_module: nn.Module, _inputs: object, value: Tensor) -> Tensor:
            factors: Tensor = mask(value)
            return value * factors.reshape(*factors.shape, *[1] * (value.ndim - 2))

        return self.module.get_submodule(tap).register_forward_hook(multiply).remove


@dataclass
class AppliedMask:
    """A mask, with its teacher and its layer."""

    teacher: str
    tap: str
    mask: PlainMask


@dataclass
class Reference:
    """The three stages with the same members; each `..._epoch` is a pass over training and validation batches."""

    student: Member
    teachers: Mapping[str, Member]
    masks: Sequence[AppliedMask]
    gate: nn.Module
    learning_rate: float = 1e-4
    losses: list[dict[str, float]] = field(default_factory=list)
    """Loss terms of the training steps, for the tests."""

    def __post_init__(self) -> None:
        """Create one optimizer for all members, one for each mask, and one for student and gate."""
        members = [self.student, *self.teachers.values()]
        together = [parameter for member in members for parameter in member.module.parameters()]
        self.of_members = torch.optim.Adam(together, self.learning_rate)
        self.of_masks = [torch.optim.Adam(applied.mask.parameters(), self.learning_rate) for applied in self.masks]
        trained = [*self.student.module.parameters(), *self.gate.parameters()]
        self.of_student = torch.optim.Adam(trained, self.learning_rate)
        self.best: tuple[float, object] = (float("inf"), None)

    def collaborate_epoch(self, train: Iterable[Data]) -> None:
        """Train all members on cross-entropy and on the KL divergence of every ordered pair; no validation."""
        members = [self.student, *self.teachers.values()]
        for member in members:
            member.module.train()
        for inputs, targets in train:
            logits = [member(inputs) for member in members]
            tasks = [functional.cross_entropy(prediction, targets) for prediction in logits]
            peers = [kl(target, prediction) for target, prediction in permutations(logits, 2)]
            task, peer = torch.stack(tasks).sum(), torch.stack(peers).sum()
            loss = task + peer
            self.of_members.zero_grad()
            loss.backward()
            self.of_members.step()
            self.losses.append({"task": task.item(), "peers": peer.item()})

    def specialise_epoch(self, train: Iterable[Data], validation: Iterable[Data]) -> None:
        """Train each mask alone to match the student's predictions, then validate all masks together."""
        self._eval_members()
        for applied in self.masks:
            applied.mask.train()
        for inputs, _ in train:
            student_logits = self.student(inputs)
            losses = {}
            for applied, optimizer in zip(self.masks, self.of_masks, strict=True):
                teacher = self.teachers[applied.teacher]
                remove = teacher.apply(applied.tap, applied.mask)
                masked_logits = teacher(inputs)
                loss = kl(student_logits.detach(), masked_logits)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                remove()
                losses[f"{applied.teacher}@{applied.tap}"] = loss.item()
            self.losses.append(losses)
        self._validate_masks(validation)

    def route_epoch(
        self, train: Iterable[Data], validation: Iterable[Data], weight_distil: float = 1.0, weight_balance: float = 1.0
    ) -> None:
        """Train the student_logits on the labels and, for each row, on the teacher that the gate selects."""
        self._eval_members()
        for applied in self.masks:
            applied.mask.eval()
        self.student.module.train()
        for inputs, targets in train:
            remove, teacher_logits = [], []
            for applied in self.masks:
                teacher = self.teachers[applied.teacher]
                remove.append(teacher.apply(applied.tap, applied.mask))
                teacher_logits.append(teacher(inputs))
            student_logits = self.student(inputs)
            weights = self.gate(student_logits).softmax(1)
            task = functional.cross_entropy(student_logits, targets)
            reported = [functional.cross_entropy(logits, targets).item() for logits in teacher_logits]
            mean = weights.mean(0)
            balance = (-mean.log() - torch.tensor(float(len(mean))).log()).mean() / len(mean)
            picked = torch.stack(teacher_logits, 1)[torch.arange(len(student_logits)), weights.argmax(1)]
            distil = kl(picked.detach(), student_logits)
            loss = task + weight_distil * distil + weight_balance * balance
            self.of_student.zero_grad()
            loss.backward()
            self.of_student.step()
            for remove_mask in remove:
                remove_mask()
            self.losses.append({"task": task.item(), "distil": distil.item(), "balance": balance.item()})
            assert len(reported) == len(self.masks)
        self.student.module.eval()
        with torch.no_grad():
            for inputs, targets in validation:
                functional.cross_entropy(self.student(inputs), targets).item()

    def _validate_masks(self, validation: Iterable[Data]) -> None:
        for applied in self.masks:
            applied.mask.eval()
        total, batches = 0.0, 0
        with torch.no_grad():
            for inputs, _ in validation:
                student_logits = self.student(inputs)
                for applied in self.masks:
                    teacher = self.teachers[applied.teacher]
                    remove = teacher.apply(applied.tap, applied.mask)
                    per_teacher = sum(other.teacher == applied.teacher for other in self.masks)
                    total += float(kl(student_logits, teacher(inputs))) / per_teacher
                    remove()
                batches += 1
        if total / max(1, batches) < self.best[0]:
            states = [{name: value.clone() for name, value in m.mask.state_dict().items()} for m in self.masks]
            self.best = (total / max(1, batches), states)

    def _eval_members(self) -> None:
        for member in (self.student, *self.teachers.values()):
            member.module.eval()

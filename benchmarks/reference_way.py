"""MST-Distill the way the released code works through it, written anew and plainly from a description of that code.

What makes it dear is kept: each mask has its own full pass of its teacher and its own optimizer; masks are computed in
the plain form, with all attention weights; backward runs through the frozen layers and adds up gradients that nobody
uses; masks stay on the teachers in the third stage, so that the second of a teacher comes on top of the first; and what
a step computed lives until the next one has computed its own. What is left out is dear for other reasons: data as
Python lists, metrics that nobody reads, copies of the inputs. Its numbers are those of the library's recipe
`mst-distill-release` (tests/test_benchmarks.py).
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


def kl(target: Tensor, given: Tensor) -> Tensor:
    """T² · KL(target ‖ given) of softened logits, mean over rows, in nats."""
    softened = functional.log_softmax(given / TEMPERATURE, dim=1)
    wanted = functional.softmax(target / TEMPERATURE, dim=1)
    return functional.kl_div(softened, wanted, reduction="batchmean") * TEMPERATURE**2


class PlainMask(nn.Module):
    """Embed, self-attention that gives its weights too, Linear, sigmoid; maps are first reduced over space.

    Its parameters have the names of `crossdistill.nets.mask`.
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
    """A network and the modalities that it takes, in this order."""

    module: nn.Module
    reads: tuple[str, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits."""
        logits: Tensor = self.module(*(inputs[name] for name in self.reads))
        return logits

    def wear(self, tap: str, mask: nn.Module) -> Callable[[], None]:
        """Multiply what a layer gives by its mask from now on; gives what ends that."""

        def bend(_module: nn.Module, _inputs: object, value: Tensor) -> Tensor:
            drawn: Tensor = mask(value)
            return value * drawn.reshape(*drawn.shape, *[1] * (value.ndim - 2))

        return self.module.get_submodule(tap).register_forward_hook(bend).remove


@dataclass
class Worn:
    """A mask, of which teacher, on which layer."""

    teacher: str
    tap: str
    mask: PlainMask


@dataclass
class ReferenceWay:
    """The three stages over the same members; each `..._epoch` is one pass over training and validation batches."""

    student: Member
    teachers: Mapping[str, Member]
    masks: Sequence[Worn]
    gate: nn.Module
    learning_rate: float = 1e-4
    losses: list[dict[str, float]] = field(default_factory=list)
    """Of the last training step of each kind, for the tests."""

    def __post_init__(self) -> None:
        """One optimizer for all members, one for each mask, one for student and gate."""
        members = [self.student, *self.teachers.values()]
        together = [parameter for member in members for parameter in member.module.parameters()]
        self.of_members = torch.optim.Adam(together, self.learning_rate)
        self.of_masks = [torch.optim.Adam(worn.mask.parameters(), self.learning_rate) for worn in self.masks]
        taught = [*self.student.module.parameters(), *self.gate.parameters()]
        self.of_student = torch.optim.Adam(taught, self.learning_rate)
        self.best: tuple[float, object] = (float("inf"), None)

    def collaborate_epoch(self, train: Iterable[Data]) -> None:
        """Cross-entropy of everyone, and KL of everyone to everyone; no validation."""
        members = [self.student, *self.teachers.values()]
        for member in members:
            member.module.train()
        for inputs, targets in train:
            logits = [member(inputs) for member in members]
            tasks = [functional.cross_entropy(one, targets) for one in logits]
            peers = [kl(one, other) for one, other in permutations(logits, 2)]
            task, peer = torch.stack(tasks).sum(), torch.stack(peers).sum()
            loss = task + peer
            self.of_members.zero_grad()
            loss.backward()
            self.of_members.step()
            self.losses.append({"task": task.item(), "peers": peer.item()})

    def specialise_epoch(self, train: Iterable[Data], validation: Iterable[Data]) -> None:
        """Each mask by itself learns to say what the student says; then all are judged together."""
        self._eval_members()
        for worn in self.masks:
            worn.mask.train()
        for inputs, _ in train:
            mine = self.student(inputs)
            found = {}
            for worn, optimizer in zip(self.masks, self.of_masks, strict=True):
                teacher = self.teachers[worn.teacher]
                take_off = teacher.wear(worn.tap, worn.mask)
                theirs = teacher(inputs)
                loss = kl(mine.detach(), theirs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                take_off()
                found[f"{worn.teacher}@{worn.tap}"] = loss.item()
            self.losses.append(found)
        self._judge_masks(validation)

    def route_epoch(
        self, train: Iterable[Data], validation: Iterable[Data], weight_distil: float = 1.0, weight_balance: float = 1.0
    ) -> None:
        """The student learns from the labels and, row by row, from the teacher that the gate picks."""
        self._eval_members()
        for worn in self.masks:
            worn.mask.eval()
        self.student.module.train()
        for inputs, targets in train:
            take_off, theirs = [], []
            for worn in self.masks:
                teacher = self.teachers[worn.teacher]
                take_off.append(teacher.wear(worn.tap, worn.mask))
                theirs.append(teacher(inputs))
            mine = self.student(inputs)
            weights = self.gate(mine).softmax(1)
            task = functional.cross_entropy(mine, targets)
            shown = [functional.cross_entropy(one, targets).item() for one in theirs]
            mean = weights.mean(0)
            balance = (-mean.log() - torch.tensor(float(len(mean))).log()).mean() / len(mean)
            picked = torch.stack(theirs, 1)[torch.arange(len(mine)), weights.argmax(1)]
            distil = kl(picked.detach(), mine)
            loss = task + weight_distil * distil + weight_balance * balance
            self.of_student.zero_grad()
            loss.backward()
            self.of_student.step()
            for one in take_off:
                one()
            self.losses.append({"task": task.item(), "distil": distil.item(), "balance": balance.item()})
            assert len(shown) == len(self.masks)
        self.student.module.eval()
        with torch.no_grad():
            for inputs, targets in validation:
                functional.cross_entropy(self.student(inputs), targets).item()

    def _judge_masks(self, validation: Iterable[Data]) -> None:
        for worn in self.masks:
            worn.mask.eval()
        total, batches = 0.0, 0
        with torch.no_grad():
            for inputs, _ in validation:
                mine = self.student(inputs)
                for worn in self.masks:
                    teacher = self.teachers[worn.teacher]
                    take_off = teacher.wear(worn.tap, worn.mask)
                    per_teacher = sum(other.teacher == worn.teacher for other in self.masks)
                    total += float(kl(mine, teacher(inputs))) / per_teacher
                    take_off()
                batches += 1
        if total / max(1, batches) < self.best[0]:
            states = [{name: value.clone() for name, value in w.mask.state_dict().items()} for w in self.masks]
            self.best = (total / max(1, batches), states)

    def _eval_members(self) -> None:
        for member in (self.student, *self.teachers.values()):
            member.module.eval()

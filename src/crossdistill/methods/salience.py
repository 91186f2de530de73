"""MGDFR's second stage: replaces teacher units that the student cannot match (Xue et al., ICLR 2023)."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.salience import least_salient, min_max
from crossdistill.losses.squared_error import squared_error
from crossdistill.method import STUDENT, DataSpec, Method, MethodConfig, Progress, Step, Term, module_key
from crossdistill.methods.layer_choice import chosen
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.nets.fill import Fill, FillWith
from crossdistill.outputs import Cut, Outputs, OutputSpec, Signal, aligned
from crossdistill.teacher import Filled, Teacher


class Salience(MethodConfig):
    """A pass over the training rows without training: measures each unit's part in two networks' agreement.

    The salience of a unit (a channel, for maps) is the distance between the two networks' logits after its values are
    permuted among the rows of a batch. The next stage has each teacher as `teacher@tap`, with its least
    salient units replaced. Use it for a stage of 0 epochs, after one that trained teacher and student to agree.
    """

    makes_next_teachers: ClassVar[bool] = True

    name: Literal["salience"] = "salience"
    taps: Mapping[str, str] = Field(default_factory=dict)
    """The layer of each teacher; for a teacher that is not listed, its last tap that is not the logits."""
    fraction: float = Field(0.75, ge=0, lt=1)
    """Fraction of the units that are replaced."""
    repeats: int = Field(10, ge=1)
    """Number of permutations of each unit."""
    fill: FillWith = "mean"
    """The replacement: "mean" over the training rows, which can be banked, or "batch", the mean over each batch; "none"
    is the released code's behaviour: the teachers are unchanged, and nothing is measured."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Selects the layers.

        Raises:
            ApplicabilityError: the shapes of logits differ, or a teacher has no layer to be filled.
            SignalError: a teacher has no such tap.
        """
        require_same_logits(self.name, student, teachers)
        taps: dict[str, str] = {}
        for name, spec in teachers.items():
            last = [signal.tap for signal in chosen("all", spec)][-1:]
            if name not in self.taps and not last:
                raise ApplicabilityError(
                    f"salience replaces units of a layer, and teacher {name!r} has no tap besides its logits; name "
                    "layers with Network(taps=...)"
                )
            taps[name] = self.taps.get(name) or last[0]
        shapes = {name: spec.feature(taps[name], f"teacher {name!r}") for name, spec in teachers.items()}
        return _Salience(self, taps, shapes)


class _Salience(Method):
    def __init__(self, config: Salience, taps: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.config = config
        self.taps = dict(taps)
        self.fills = nn.ModuleDict({module_key(name): Fill(shape, config.fill) for name, shape in shapes.items()})
        self._seed = int(torch.randint(2**62, ()))

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        cuts = {name: frozenset({Signal.LOGITS, Signal.cut(tap)}) for name, tap in self.taps.items()}
        return {STUDENT: frozenset({Signal.LOGITS}), **cuts}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        return Step({f"apart/{name}": Term(_apart(outputs, teachers[name](batch))) for name in self.taps}, outputs)

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], student: Teacher, teachers: Mapping[str, Teacher]) -> None:
        """Measures the salience of every unit, and the mean of the layer over all rows."""
        if self.config.fill == "none":
            return
        source = torch.Generator().manual_seed(self._seed)
        measured = {name: _Salient(self.fill(name)) for name in self.taps}
        for batch in batches:
            outputs = student(batch)
            for name, tap in self.taps.items():
                guide, tail = teachers[name](batch), teachers[name].tail(tap)
                cut = guide.cuts[tap]
                measured[name].mean(cut.value)
                for unit in range(cut.value.shape[1]):
                    for _ in range(self.config.repeats):
                        permuted = tail(_permuted(cut, unit, source))
                        moved = Outputs(name, permuted.logits, rows=guide.rows)
                        measured[name].salience(unit, _apart(outputs, moved))
        for layer in measured.values():
            layer.settle(self.config.fraction)

    def next_teachers(self, teachers: Mapping[str, Teacher]) -> Mapping[str, Teacher]:
        filled: dict[str, Teacher] = {}
        for name, tap in self.taps.items():
            filled[f"{name}@{tap}"] = Filled(f"{name}@{tap}", teachers[name], {tap: self.fill(name)})
        return filled

    def fill(self, teacher: str) -> Fill:
        """The module that replaces a teacher's units."""
        fill = self.fills[module_key(teacher)]
        assert isinstance(fill, Fill)
        return fill


class _Salient:
    """Sums over a pass: the mean of one layer, and the distance of the logits for each permuted unit."""

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        exact = torch.float64 if fill.mean.device.type != "mps" else torch.float32
        self._sum = torch.zeros_like(fill.mean, dtype=exact)
        self._apart = torch.zeros_like(fill.salience, dtype=exact)
        self._rows = 0

    def mean(self, value: Tensor) -> None:
        self._sum += value.sum(0)
        self._rows += len(value)

    def salience(self, unit: int, rows: Tensor) -> None:
        self._apart[unit] += rows.sum()

    def settle(self, fraction: float) -> None:
        salience = min_max(self._apart)
        self._fill.salience.copy_(salience)
        self._fill.replaced.copy_(least_salient(salience, fraction))
        self._fill.mean.copy_(self._sum / max(1, self._rows))


def _permuted(cut: Cut, unit: int, source: torch.Generator) -> Cut:
    order = torch.randperm(len(cut.value), generator=source).to(cut.value.device)
    value = cut.value.clone()
    value[:, unit] = cut.value[order, unit]
    return cut.rewritten(value)


def _apart(student: Outputs, teacher: Outputs) -> Tensor:
    mine, theirs, _ = aligned(student, teacher)
    return squared_error(mine, theirs)

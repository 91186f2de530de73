"""Overhaul of feature distillation: features before the activation, above a margin (Heo et al., ICCV 2019)."""

import logging
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crossdistill.batch import Batch, Task
from crossdistill.errors import ApplicabilityError
from crossdistill.losses.ofd import normal_margin, partial_distance
from crossdistill.losses.spatial import as_map, same_space
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import Activation, ActsOn, DataSpec, Method, Progress, Step, module_key, task_term
from crossdistill.methods.feature_method import FeatureConfig, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs
from crossdistill.methods.loss_weights import Warmup, weighted_step
from crossdistill.nets.norm import Gather, JointNorm
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Teacher, TeacherBase

log = logging.getLogger("crossdistill")


class OFD(FeatureConfig):
    """`CE + 0.001 · Σ over stages of 2^-(stages behind it) · partial distance`; by default over all spatial taps.

    Taps should lie before their activation. A margin is the expected negative value of a channel: computed from the
    batch norm if that is the tapped layer (or the last layer of the tapped block), else measured on the training rows.
    """

    acts_on: ClassVar[ActsOn | None] = "maps"
    activation: ClassVar[Activation] = "before"
    name: Literal["ofd"] = "ofd"
    weight_task: float = Field(1.0, ge=0)
    weight: float = Field(1e-3, ge=0)
    """Weight of the distillation loss after the warm-up."""
    warm_up: int = Field(0, ge=0)
    """Length of the warm-up, in epochs."""
    margins: Literal["norm", "measured"] = "norm"
    """"measured" uses the training rows even where a batch norm gives the margin."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a pointwise connector with batch norm for each pair, the deepest with the deepest.

        Raises:
            ApplicabilityError: no activation follows a compared layer, so that there is no feature before one.
        """
        pairs = self.pairs("maps", student, teachers)
        for name, of_teacher in pairs.items():
            for pair in of_teacher:
                _require_activation(pair.student, student, "the student", "taps")
                _require_activation(pair.teacher, teachers[name], f"teacher {name!r}", f"teacher_taps.{name}")
        return _OFD(self, pairs, data.labelled_fraction)

    def loss_weights(self) -> Warmup:
        """The schedule of the weights of the task and the distillation loss."""
        return Warmup(self.weight_task, self.weight, self.warm_up)


class _OFD(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    # The connectors normalise over the batch.
    batch_relational: ClassVar[bool] = True

    def __init__(self, config: OFD, pairs: Pairs, labelled_fraction: float) -> None:
        super().__init__()
        self.config = config
        self.pairs = pairs
        self.labelled_fraction = labelled_fraction
        self.connectors = nn.ModuleDict()
        for name, of_teacher in pairs.items():
            for stage, pair in enumerate(of_teacher):
                self.connectors[module_key(f"{name}:{stage}")] = _Connector(pair.mine[0], pair.theirs[0])

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], student: Teacher, teachers: Mapping[str, Teacher]) -> None:
        """Computes margins from the teachers' batch norms, and measures them in one pass where there is none."""
        missing: list[tuple[str, int]] = []
        for name, of_teacher in self.pairs.items():
            for stage, pair in enumerate(of_teacher):
                norm = _norm(teachers[name], pair.teacher.tap) if self.config.margins == "norm" else None
                if norm is None:
                    missing.append((name, stage))
                else:
                    self._margin(name, stage).copy_(normal_margin(norm.bias, norm.weight))
        if not missing:
            return
        log.info("ofd: margins of %s are measured on the training rows", sorted({name for name, _ in missing}))
        seen = {key: _Below(self._margin(*key)) for key in missing}
        for batch in batches:
            outputs = {name: teachers[name](batch) for name in {name for name, _ in missing}}
            for (name, stage), below in seen.items():
                below.add(as_map(outputs[name].need(self.pairs[name][stage].teacher)))
        for key, below in seen.items():
            self._margin(*key).copy_(below.margin())

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs, Signal.LOGITS)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        task = task_term(outputs, batch, fraction=self.labelled_fraction)
        terms = {}
        for features in paired_features(self.pairs, outputs, batch, teachers):
            total = []
            for stage, (mine, theirs) in enumerate(features.pairs()):
                connect = self._connector(features.name, stage)
                mapped, wanted = same_space(connect(as_map(mine), progress.gather), as_map(theirs))
                behind = len(features.student) - 1 - stage
                total.append(partial_distance(mapped, wanted, connect.margin) / 2**behind)
            terms[f"ofd/{features.name}"] = features.term(torch.stack(total).sum(0))
        return weighted_step(self.config.loss_weights(), progress, outputs, task, terms)

    def _connector(self, teacher: str, stage: int) -> "_Connector":
        connector = self.connectors[module_key(f"{teacher}:{stage}")]
        assert isinstance(connector, _Connector)
        return connector

    def _margin(self, teacher: str, stage: int) -> Tensor:
        return self._connector(teacher, stage).margin


class _Connector(nn.Module):
    """A 1x1 convolution to the teacher's channels with batch norm; holds the teacher's margins."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 1, bias=False)
        self.norm = JointNorm(out)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")
        self.margin: Tensor
        self.register_buffer("margin", torch.zeros(out))

    def forward(self, feature: Tensor, gather: Gather) -> Tensor:
        mapped: Tensor = self.norm(self.convolution(feature), gather)
        return mapped


class _Below:
    """The mean of the negative values of each channel; -3 standard deviations if there are (almost) none."""

    def __init__(self, like: Tensor) -> None:
        exact = torch.float64 if like.device.type != "mps" else torch.float32
        self._sums = torch.zeros(5, len(like), dtype=exact, device=like.device)

    def add(self, maps: Tensor) -> None:
        # One channel at a time: a copy of all in double precision would need several times the memory of the maps.
        for channel, whole in enumerate(maps.unbind(1)):
            values = whole.to(self._sums.dtype)
            below = values.clamp(max=0)
            parts = (below.sum(), below.count_nonzero(), values.sum(), values.square().sum())
            self._sums[:, channel] += torch.stack([*parts, self._sums.new_tensor(values.numel())])

    def margin(self) -> Tensor:
        low, count, total, squares, rows = self._sums
        rows = rows.clamp(min=1)
        deviation = (squares / rows - (total / rows).square()).clamp(min=0).sqrt()
        return torch.where(count / rows > 0.001, low / count.clamp(min=1), -3 * deviation)


def _require_activation(signal: Signal, spec: OutputSpec, who: str, setting: str) -> None:
    if signal.tap in spec.linear:
        raise ApplicabilityError(
            f"ofd compares features before their activation, and none follows the layer {signal.tap} of {who}; "
            f"name layers that one follows in {setting}, or take a method on features after it (at, nst, vid, sp)"
        )


def _norm(teacher: Teacher, tap: str) -> "nn.modules.batchnorm._BatchNorm | None":
    """The batch norm whose output is the tap's value, if there is one and the teacher is a network."""
    network = TeacherBase.of(teacher).unshuffled.base.network
    if network is None or not tap:
        return None
    layers = list(network.module.get_submodule(tap).modules())
    last = layers[-1]
    return last if isinstance(last, nn.modules.batchnorm._BatchNorm) and last.affine else None

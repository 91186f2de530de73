"""Multi-Distillation: hidden layers of teachers of several domains, each learnt from rows of its own (2506.07237).

Routing of whole rows is that of Wei, Lin, Ritter-Gutierrez and Lee; soft weights of domains are after USAD 2.0
(2606.06444), also by the teachers' own confidence (`OwnDomain`).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.batch import Batch, Task
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.losses.hidden_states import HiddenLoss, barlow_distance, hidden_state_distance, pooled_frames
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import STUDENT, DataSpec, Method, Progress, Step, Term, module_key
from crossdistill.methods.domain_routing import (
    Layers,
    check_names,
    check_taught,
    confidence_weights,
    domain_weights,
    layers_of,
    routes,
    rows_in_step,
    rows_of,
    statistics_of,
)
from crossdistill.methods.routed_layers import (
    Compared,
    add_moments,
    add_rows,
    compared,
    heads_for,
    kept_teachers,
    own_head,
)
from crossdistill.methods.routed_settings import RoutedSettings
from crossdistill.nets.domain_classifier import DomainClassifier, DomainSums
from crossdistill.nets.own_domain import OwnDomain
from crossdistill.nets.teacher_head import TeacherHead
from crossdistill.outputs import Outputs, OutputSpec, Signal, zero_of
from crossdistill.teacher import Teacher


class _MultiDistillation(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    judged_by_targets: ClassVar[bool] = False
    trains_logits: ClassVar[bool] = False

    def __init__(
        self,
        config: RoutedSettings,
        layers: Layers,
        domains: Mapping[str, tuple[str, ...]],
        heads: Mapping[str, TeacherHead],
    ) -> None:
        super().__init__()
        self.config, self.layers, self.domains = config, layers, domains
        self.mine = {name: _own_signal(config, name) or layers[STUDENT] for name in domains}
        self.heads = nn.ModuleDict({module_key(name): head for name, head in heads.items()})
        known = dict.fromkeys(domain for own in domains.values() for domain in own)
        soft_by = config.soft_by if config.routing == "soft" else None
        self.classifier = DomainClassifier(tuple(known)) if soft_by == "classifier" else None
        widths = {module_key(name): head.width for name, head in heads.items() if soft_by == "confidence"}
        self.own = nn.ModuleDict({name: OwnDomain(width) for name, width in widths.items()})

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        needs = {name: frozenset(signals) for name, signals in self.layers.items()}
        return {**needs, STUDENT: frozenset(signal for signals in self.mine.values() for signal in signals)}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        if self.config.routing == "hard":
            check_taught(self.domains, self.config.untaught, batch)
        outputs = student(batch)
        kept = kept_teachers(tuple(self.domains), self.config.drop, self.config.drop_seed, progress)
        found = {one.name: one for one in self._compared(kept, batch, outputs, student, teachers)}
        terms = {f"multi-distillation/{name}": self._term(name, found.get(name), batch, progress) for name in teachers}
        return Step(terms, outputs)

    def _term(self, name: str, found: Compared | None, batch: Batch, progress: Progress) -> Term:
        """A teacher's term; of a teacher that is left out, one of no rows, so that every step has all terms."""
        weight = self.config.teacher_weights.get(name, 1.0)
        if found is None or not len(found.rows):
            zero = zero_of(self._head(name).parameters(), batch.ids.device)
            return Term(zero.expand(0) if found is None else found.prediction.flatten(1).sum(1) + zero, weight, name)
        rows = self._distance(found).mean(1)
        if found.weight is not None:
            # Divided by all rows of the step: a row's weights add up to 1, so this is hard routing's `batch`.
            rows = rows * found.weight
        elif self.config.normalise == "teacher" and self.config.routing == "hard":
            rows = rows * (batch.total_rows / rows_in_step(self.domains[name], batch))
        return Term(rows, weight, name)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        """The loss of each teacher's layers by row, as `TEACHER/LAYER`, and each row's mean over its teachers.

        In the mean, losses are multiplied by the teachers' weights, as in the terms: it chooses the best epoch.
        """
        total, count = torch.zeros(2, len(batch), device=batch.ids.device).unbind()
        values: dict[str, Tensor] = {}
        for found in self._compared(tuple(teachers), batch, student(batch), student, teachers):
            self._check_target(found)
            distance = self._distance(found)
            taps = (signal.tap or str(signal) for signal in self.layers[found.name])
            values |= {f"{found.name}/{tap}": distance[:, number] for number, tap in enumerate(taps)}
            weight = torch.ones_like(distance[:, 0]) if found.weight is None else found.weight
            factor = self.config.teacher_weights.get(found.name, 1.0)
            total = total.index_add(0, found.rows, distance.mean(1) * weight * factor)
            count = count.index_add(0, found.rows, weight)
        return {STUDENT: (total / count)[count > 0], **values}

    def _distance(self, found: Compared) -> Tensor:
        kind = self._kind(found.name)
        return hidden_state_distance(found.prediction, found.target, found.valid, kind, self.config.cosine)

    def _kind(self, teacher: str) -> HiddenLoss:
        common = self.config.loss
        return self.config.losses.get(teacher, "l1" if common == "barlow" else common)

    def _check_target(self, found: Compared) -> None:
        """Refuse teachers without probabilities for `bernoulli`: here and not in a step, which would wait for a GPU."""
        if self._kind(found.name) != "bernoulli" or not found.target.numel():
            return
        valid = None if found.valid is None else found.valid.unsqueeze(1).expand_as(found.target[..., 0])
        values = found.target if valid is None else found.target[valid]
        low, high = (float(value) for value in values.aminmax()) if values.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):
            raise ApplicabilityError(
                f"multi-distillation: the loss bernoulli needs probabilities, and {self.layers[found.name][0]} of "
                f"teacher {found.name!r} has values from {low:.3g} to {high:.3g}; choose another in losses.{found.name}"
            )

    def _compared(
        self, names: Iterable[str], batch: Batch, outputs: Outputs, student: Teacher, teachers: Mapping[str, Teacher]
    ) -> Iterator[Compared]:
        weights, ran = None, dict[str, Outputs]()
        if self.classifier is not None:
            weights = domain_weights(self.classifier, batch, student, self.domains, self.config.sharpness)
        elif len(self.own):
            ran = {name: teacher(batch) for name, teacher in teachers.items()}
            weights = confidence_weights(self.own, batch, ran, teachers, self.layers, self.config.sharpness)
        for name in names:
            rows = self._rows(name, batch, weights)
            weight, sources = None if weights is None else weights[name], (student, teachers[name])
            layers = (self.mine[name], self.layers[name])
            yield compared(name, rows, weight, self._head(name), layers, batch, outputs, sources, ran.get(name))

    def _rows(self, name: str, batch: Batch, weights: Mapping[str, Tensor] | None) -> Tensor:
        if weights is not None:
            return (weights[name] > self.config.least_weight).nonzero().flatten()
        if self.config.routing == "all":
            return torch.arange(len(batch), device=batch.ids.device)
        return rows_of(self.domains[name], batch)

    def _own(self, teacher: str) -> OwnDomain:
        own = self.own[module_key(teacher)]
        assert isinstance(own, OwnDomain)
        return own

    def _head(self, teacher: str) -> TeacherHead:
        head = self.heads[module_key(teacher)]
        assert isinstance(head, TeacherHead)
        return head


class _Measured(_MultiDistillation):
    """Measures what soft routing and the standardisation of layers need, in a pass before the first step."""

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], student: Teacher, teachers: Mapping[str, Teacher]) -> None:
        sums = None if self.classifier is None else DomainSums(self.classifier)
        moments = {name: self._head(name).moments() for name in teachers if self.config.standardise != "none"}
        own = {name: self._own(name).moments() for name in teachers if len(self.own)}
        for batch in batches:
            if sums is not None:
                rows_of((), batch)
                sums.add(statistics_of(batch, student), batch.domain or ())
            for name, of_rows in own.items():
                add_rows(of_rows, teachers[name], self.layers[name], batch, self.domains[name])
            for name, each in moments.items():
                rows = torch.arange(len(batch)) if self.config.routing == "all" else rows_of(self.domains[name], batch)
                if len(rows):
                    add_moments(each, teachers[name], self.layers[name], batch.select(rows))
        if sums is not None and self.classifier is not None:
            self.classifier.settle(sums)
        for name, of_rows in own.items():
            self._own(name).settle(of_rows)
        for name, each in moments.items():
            self._head(name).settle(each)


class _Relational(_MultiDistillation):
    """Correlations over the rows of all ranks."""

    batch_relational: ClassVar[bool] = True

    def _term(self, name: str, found: Compared | None, batch: Batch, progress: Progress) -> Term:
        if found is None:
            return super()._term(name, found, batch, progress)
        config, zero = self.config, zero_of(self._head(name).parameters(), batch.ids.device)
        # As many parts on every rank, whatever its longest row: their shapes have to be equal.
        pairs = [pooled_frames(value, found.valid, config.bins) for value in (found.prediction, found.target)]
        mine, theirs = (progress.gather(value) for value in pairs)
        loss = barlow_distance(mine, theirs, config.across, config.within)
        if len(mine):
            angle = functional.cosine_similarity(mine, theirs, dim=-1)
            loss = loss - config.cosine * functional.logsigmoid(angle).mean()
        return Term(loss + zero, config.teacher_weights.get(name, 1.0), name)


class _MeasuredRelational(_Measured, _Relational): ...


class MultiDistillation(RoutedSettings):
    """`Σ over teachers of weight · mean over its rows, layers and frames of (|p-y| - cosine · log sigmoid cos(p,y))`.

    p is predicted from the student's last layer by the teacher's head, or is an output of the student itself
    (`student_heads`); y is the teacher's layer. Features are frames (B, T, D) or maps; a vector (B, D) is one frame,
    and a teacher's vector is predicted from the mean of the student's valid frames. Frames of padding are in no term. A
    teacher runs on its rows alone.
    """

    name: Literal["multi-distillation"] = "multi-distillation"

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a head for each teacher.

        Raises:
            SettingError: a setting names no teacher, or domains of data and teachers do not match.
        """
        if not teachers:
            raise ApplicabilityError("multi-distillation needs at least one teacher; this stage has none")
        given = {"layers": self.layers, "domains": self.domains, "teacher_weights": self.teacher_weights}
        given |= {"student_heads": self.student_heads, "losses": self.losses}
        given |= {"frame_rates": self.frame_rates, "convolution": dict.fromkeys(self.convolution or (), 0.0)}
        check_names({name: tuple(value) for name, value in given.items()}, tuple(teachers))
        if self.loss == "barlow" and self.routing == "soft":
            raise SettingError(
                "multi-distillation: the loss barlow compares rows and takes no weights; routing is soft"
            )
        self._check_together()
        known = data.domains if self.routing != "all" else None
        own = routes(self.domains, tuple(teachers), known, self.untaught)
        layers = {name: layers_of(spec, f"teacher {name!r}", self.layers.get(name)) for name, spec in teachers.items()}
        if self.student_heads.keys() >= layers.keys():
            layers = {STUDENT: (), **layers}
        else:
            mine = layers_of(student, STUDENT, self.taps or None)
            layers = {STUDENT: mine if self.taps else mine[-1:], **layers}
        kind: type[_MultiDistillation] = _Relational if self.loss == "barlow" else _MultiDistillation
        if self.routing == "soft" or self.standardise != "none":
            kind = _MeasuredRelational if self.loss == "barlow" else _Measured
        return kind(self, layers, own, self._heads(layers, {STUDENT: student, **teachers}))

    def _check_together(self) -> None:
        """Refuse settings that exclude each other.

        Raises:
            SettingError: there are some.
        """
        if self.loss == "barlow" and self.losses:
            raise SettingError("multi-distillation: the loss barlow compares rows of all teachers alike; losses is set")
        if self.standardise != "none" and self.student_heads:
            raise SettingError(
                f"multi-distillation: standardise is {self.standardise!r}, and heads of the student's own predict the "
                "teacher's values as they are; set standardise=none, or leave student_heads out"
            )

    def _heads(self, layers: Layers, specs: Mapping[str, OutputSpec]) -> dict[str, TeacherHead]:
        own = {
            name: own_head(name, signal[0], layers[name], specs, self.frame_rates)
            for name in layers
            if (signal := _own_signal(self, name))
        }
        teachers = [name for name in layers if name not in own and name != STUDENT]
        if not teachers:
            return own
        convolving = teachers[1:] if self.convolution is None else self.convolution
        kinds = dict.fromkeys(teachers, self.translator)
        if self.translator == "hybrid":
            kinds = {name: "lconv" if name in convolving else "mlp" for name in teachers}
        return {**heads_for(kinds, layers, specs, self.frame_rates, self.standardise), **own}


def _own_signal(config: RoutedSettings, teacher: str) -> tuple[Signal, ...]:
    """The student's output that predicts this teacher without a translator; empty: it has a translator."""
    tap = config.student_heads.get(teacher)
    if tap is None:
        return ()
    return (Signal.EMBEDDING if tap == "embedding" else Signal.feature(tap),)

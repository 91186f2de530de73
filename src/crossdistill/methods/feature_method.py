"""Functions for methods on features: the pairs of compared features, and their values on shared rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.spatial import as_vector, pooled_vector
from crossdistill.method import STUDENT, MethodConfig, Term
from crossdistill.methods.layer_choice import LayerChoice, Pair, Pairs, Shape, chosen, is_map
from crossdistill.outputs import Outputs, OutputSpec, Signal, picked, shared_rows
from crossdistill.teacher import Teacher

VectorOf = Literal["mean", "max-pooled"]
"""Conversion of a map to a vector: each channel's mean, or all positions after 2x2 max-pooling."""


class FeatureConfig(MethodConfig):
    """Settings of every method that compares features: the compared layers."""

    taps: tuple[str, ...] | None = None
    """The student's layers, in execution order; None: chosen by the method, see `LayerChoice`."""
    teacher_taps: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """The layers of each teacher; for a teacher that is not listed, the method chooses them."""

    def pairs(
        self,
        choice: LayerChoice,
        student: OutputSpec,
        teachers: Mapping[str, OutputSpec],
        *,
        least: int = 1,
        flat: bool = False,
    ) -> dict[str, tuple[Pair, ...]]:
        """The compared pairs of features, by teacher; if one network has more features, its last ones are used.

        For "maps", a feature with one position may be named only if `flat`.

        Raises:
            ApplicabilityError: no teacher, or fewer than `least` features of that kind; names the network.
            SignalError: a network has no layer of that name.
            SettingError: the numbers of layers named for both sides differ, or no teacher has a listed name.
        """
        if not teachers:
            raise ApplicabilityError(f"{self.name} needs at least one teacher; this stage has none")
        for name in self.teacher_taps:
            if name not in teachers:
                raise SettingError(f"{self.name}: teacher_taps: no teacher {name!r}; {nearest(name, teachers)}")
        pairs: dict[str, tuple[Pair, ...]] = {}
        mine = self._features(choice, student, self.taps, "the student", least, flat)
        for name, spec in teachers.items():
            theirs = self._features(choice, spec, self.teacher_taps.get(name), f"teacher {name!r}", least, flat)
            if self.taps is not None and name in self.teacher_taps and len(mine) != len(theirs):
                raise SettingError(
                    f"{self.name}: {len(mine)} layers of the student are named ({', '.join(map(str, mine))}) and "
                    f"{len(theirs)} of teacher {name!r} ({', '.join(map(str, theirs))}); name as many"
                )
            count = min(len(mine), len(theirs))
            ends = zip(list(mine.items())[-count:], list(theirs.items())[-count:], strict=True)
            pairs[name] = tuple(Pair(a, b, shape, other) for (a, shape), (b, other) in ends)
        return pairs

    def _features(
        self, choice: LayerChoice, spec: OutputSpec, taps: Sequence[str] | None, who: str, least: int, flat: bool
    ) -> dict[Signal, Shape]:
        if taps is not None:
            named = {Signal.feature(tap): spec.feature(tap, who) for tap in taps}
            strict = choice == "maps" and not flat
            wrong = [f"{signal.tap} {shape}" for signal, shape in named.items() if strict and not is_map(shape)]
            if wrong or not named:
                raise ApplicabilityError(
                    f"{self.name} compares spatial features (more than one position); found for {who}: "
                    f"{', '.join(wrong) or 'none'}; name spatial layers in taps and teacher_taps"
                )
            return named
        features = chosen(choice, spec, self.activation)
        if len(features) < least:
            kind = "spatial features (more than one position)" if choice == "maps" else "features besides its logits"
            shown = ", ".join(f"{tap} {shape}" for tap, shape in spec.features.items()) or "none"
            raise ApplicabilityError(
                f"{self.name} needs {least} or more {kind}, and {who} has {len(features)}; its taps are: {shown}"
            )
        return features


def vector(feature: Tensor, maps: VectorOf) -> Tensor:
    """A feature (B, *shape) as a vector (B, D)."""
    return pooled_vector(feature) if maps == "max-pooled" else as_vector(feature)


def vector_size(shape: Shape, maps: VectorOf) -> int:
    """The size D of that vector."""
    return vector(torch.empty(1, *shape, device="meta"), maps).shape[1]


def signals_of(pairs: Pairs, *others: Signal) -> dict[str, frozenset[Signal]]:
    """The signals needed for these pairs of features, plus the other signals of the student."""
    student = {pair.student for of_teacher in pairs.values() for pair in of_teacher}
    teachers = {name: frozenset(pair.teacher for pair in of_teacher) for name, of_teacher in pairs.items()}
    return {STUDENT: frozenset({*others, *student}), **teachers}


@dataclass(frozen=True, slots=True)
class PairedFeatures:
    """The compared features of the student and one teacher, on the rows that have outputs of both.

    Both lists are in the order of the pairs; the teacher's features have no gradient.
    """

    name: str
    """Name of the teacher."""
    student: list[Tensor]
    teacher: list[Tensor]
    rows: Tensor | None
    """Indices of these rows in the batch; None: all rows."""
    share: float
    """Share of the distillation loss: 1 / number of teachers."""

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The feature of the student and that of the teacher, pair by pair."""
        return zip(self.student, self.teacher, strict=True)

    def empty(self) -> bool:
        """Whether there are no shared rows."""
        return len(self.student[0]) == 0

    def term(self, loss: Tensor) -> Term:
        """A loss as a term: one value for each of these rows, or a scalar for the batch."""
        return Term(loss, self.share)

    def empty_term(self) -> Term:
        """The term of no rows (0,), connected to every feature: layers such as BatchNorm may reject an empty batch."""
        return self.term(torch.stack([feature.flatten(1).sum(1) for feature in self.student]).sum(0))


def paired_features(
    pairs: Pairs, student: Outputs, batch: Batch, teachers: Mapping[str, Teacher]
) -> Iterator[PairedFeatures]:
    """Run the teachers one after another, and pair their features with the student's."""
    for name, of_teacher in pairs.items():
        yield PairedFeatures(name, *shared_features(of_teacher, student, teachers[name](batch)), 1 / len(pairs))


def shared_features(
    pairs: Iterable[Pair], student: Outputs, teacher: Outputs
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """The features of both on their shared rows, the teacher's without gradient; and the indices of those rows."""
    of_student, of_teacher, rows = shared_rows(student, teacher)
    pairs = list(pairs)
    return (
        [picked(student.need(pair.student), of_student) for pair in pairs],
        [picked(teacher.need(pair.teacher), of_teacher).detach() for pair in pairs],
        rows,
    )

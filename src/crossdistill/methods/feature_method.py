"""Functions for methods on features: the choice of the compared layers, and their values on shared rows.

The layers that each method reads as published, and in the recipes of this package:

| method | published | here |
|---|---|---|
| at, nst, vid, kdsvd | the stages' maps, after their activation | every spatial layer, after it |
| sp | the last stage's map, after its activation | the last spatial layer, after it |
| ofd | the stages' maps, before their activation | every spatial layer, before it |
| reviewkd | the stages' maps before it, and pooled features | every spatial layer, before it; the last one's mean |
| rkd, crd, pkt | the embedding: the input of the last layer | the penultimate layer, after its activation |
| hint (fitnets) | one middle layer, after its activation | a middle and a late layer, after it |
| ofa | the student's stages, after their activation | its spatial layers and its late one, after it |
| c2kd | features before the classifier | the penultimate layer, as a map before it is flattened |
| salience (mgdfr) | the layer before the classifier | the late layer, before its activation, a map by channels |
| specialise (mst-distill) | an intermediate and the penultimate layer | a middle and a late layer, before activation |
| kd, dkd, dist, mlkd, mlld, dml, collaborate, route, supervised | logits | logits |

Two differ on purpose: hints compare two pairs, as MST-Distill's FitNets do, instead of the one of Romero et al.; and
ReviewKD pools its last map before the activation, whereas mdistiller pools after it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.spatial import as_map, as_vector, pooled_vector, same_space
from crossdistill.method import STUDENT, Activation, MethodConfig, Term
from crossdistill.outputs import Outputs, OutputSpec, Signal, picked, shared_rows
from crossdistill.teacher import Teacher

Shape = tuple[int, ...]

VectorOf = Literal["mean", "max-pooled"]
"""Conversion of a map to a vector: each channel's mean, or all positions after 2x2 max-pooling."""

LayerChoice = Literal["maps", "last", "vector", "hints", "all"]
"""The default choice among a network's taps. Candidates are all taps in execution order, without those of the logits'
shape; of a layer that is tapped before and after its activation, only the one that `MethodConfig.activation` names:
"maps": every tap with more than one position (channels first);
"last": the last of these, or else the "vector";
"vector": the network's embedding, or else the last tap (of a map, each channel's mean);
"hints": the middle tap and the last tap;
"all": every tap."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A feature of the student and a feature of a teacher, each with its shape."""

    student: Signal
    teacher: Signal
    mine: Shape
    theirs: Shape


Pairs = Mapping[str, tuple[Pair, ...]]
"""The compared features, by teacher."""


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
                    f"{len(theirs)} of teacher {name!r} ({', '.join(map(str, theirs))}); they are compared one by one"
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
                    f"{self.name} compares spatial features (more than one position); of {who} are named: "
                    f"{', '.join(wrong) or 'none'}"
                )
            return named
        features = chosen(choice, spec, self.activation)
        if len(features) < least:
            kind = "spatial features (more than one position)" if choice == "maps" else "features besides its logits"
            shown = ", ".join(f"{tap} {shape}" for tap, shape in spec.features.items()) or "none"
            raise ApplicabilityError(
                f"{self.name} needs {least} or more {kind}, and {who} shows {len(features)}; its taps are: {shown}"
            )
        return features


def vector(feature: Tensor, maps: VectorOf) -> Tensor:
    """A feature (B, *shape) as a vector (B, D)."""
    return pooled_vector(feature) if maps == "max-pooled" else as_vector(feature)


def vector_size(shape: Shape, maps: VectorOf) -> int:
    """The size D of that vector."""
    return vector(torch.empty(1, *shape, device="meta"), maps).shape[1]


def require_positions(method: str, pairs: Mapping[str, Sequence[Pair]], *, wide: bool = False) -> None:
    """Refuse pairs whose shared size is one position (if `wide`: one column), which leaves nothing to compare.

    Raises:
        ApplicabilityError: there is such a pair; names the layers and their shapes.
    """
    for name, of_teacher in pairs.items():
        for pair in of_teacher:
            height, width = shared_size(pair)
            if (width if wide else height * width) < 2:
                what = "column" if wide else "position"
                raise ApplicabilityError(
                    f"{method} compares how a map's {what}s differ, and {pair.student.tap} {pair.mine} of the student "
                    f"and {pair.teacher.tap} {pair.theirs} of teacher {name!r} share a single {what}; name other "
                    "layers in taps and teacher_taps, or take a method that compares vectors (rkd, crd, pkt, sp)"
                )


def shared_size(pair: Pair) -> tuple[int, int]:
    """Height and width at which two features of any shape are compared."""
    sides = [as_map(torch.empty(1, *shape, device="meta")) for shape in (pair.mine, pair.theirs)]
    height, width = same_space(sides[0], sides[1])[0].shape[2:]
    return height, width


def is_map(shape: Shape) -> bool:
    """Whether a feature has more than one position; channels come first."""
    return prod(shape[1:]) > 1


def chosen(choice: LayerChoice, spec: OutputSpec, activation: Activation = "after") -> dict[Signal, Shape]:
    """The features of a network by this rule, with their shapes; empty if there are none."""
    unwanted = set(spec.activated) if activation == "after" else set(spec.activated.values())
    shapes = {tap: shape for tap, shape in spec.features.items() if tap not in unwanted}
    every = {Signal.feature(tap): shape for tap, shape in shapes.items() if shape != spec.logits}
    maps = {signal: shape for signal, shape in every.items() if is_map(shape)}
    if choice == "maps":
        return maps
    if choice == "last" and maps:
        return dict([list(maps.items())[-1]])
    if choice in {"last", "vector"}:
        embedding = {Signal.EMBEDDING: spec.embedding} if spec.embedding is not None else {}
        return embedding or dict(list(every.items())[-1:])
    if choice == "hints" and len(every) > 1:
        return dict([list(every.items())[(len(every) - 1) // 2], list(every.items())[-1]])
    return every


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

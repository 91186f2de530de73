"""The functions that methods on features call: which layers are compared, and their values on shared rows.

Where each method is published to read features, and what the recipes here give it:

| method | published | here |
|---|---|---|
| at, nst, vid, kdsvd | the stages' maps, after their activation | every spatial layer, after it |
| sp | the last stage's map, after its activation | the last spatial layer, after it |
| ofd | the stages' maps, before their activation | every spatial layer, before it |
| reviewkd | the stages' maps before it, and pooled features | every spatial layer, before it; the last one's mean |
| rkd, crd, pkt | the embedding: what the last layer reads | the penultimate layer, after its activation |
| hint (fitnets) | one middle layer, after its activation | a middle and a late layer, after it |
| ofa | the student's stages, after their activation | its spatial layers and its late one, after it |
| c2kd | features before the classifier | the penultimate layer, as a map before it is flattened |
| salience (mgdfr) | the layer before the classifier | the late layer, before its activation, a map by channels |
| specialise (mst-distill) | an intermediate and the penultimate layer | a middle and a late layer, before activation |
| kd, dkd, dist, mlkd, mlld, dml, collaborate, route, supervised | logits | logits |

Two differ on purpose: hints compare two pairs, as MST-Distill's FitNets do, where Romero et al. have one; and ReviewKD
pools its last map before the activation, where mdistiller pools after it.
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
"""How a map becomes a vector: each channel's mean, or all positions after 2x2 max-pooling."""

LayerChoice = Literal["maps", "last", "vector", "hints", "all"]
"""What is taken of a network whose layers are not named, out of its taps in the order in which they run, leaving out
those that have the logits' shape, and, of a layer that is tapped before and after its activation, the one that the
method does not want (`MethodConfig.activation`):
"maps": every tap with more than one position (channels first);
"last": the last of these, or else the "vector";
"vector": the network's embedding, or else the last tap of all (of a map, each channel's mean);
"hints": the one in the middle and the last;
"all": every tap."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One feature of the student beside one of a teacher, each with its shape."""

    student: Signal
    teacher: Signal
    mine: Shape
    theirs: Shape


Pairs = Mapping[str, tuple[Pair, ...]]
"""The features that are compared, by teacher."""


class FeatureConfig(MethodConfig):
    """Settings of every method that compares features: where they are read."""

    taps: tuple[str, ...] | None = None
    """The student's layers, in the order in which they run; None: chosen, see `LayerChoice`."""
    teacher_taps: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """The teachers' layers, by teacher; of one that is not named they are chosen."""

    def pairs(
        self,
        choice: LayerChoice,
        student: OutputSpec,
        teachers: Mapping[str, OutputSpec],
        *,
        least: int = 1,
        flat: bool = False,
    ) -> dict[str, tuple[Pair, ...]]:
        """The features that meet, by teacher; where one network has more of them, its last ones do.

        Of "maps", a feature with one position may be named only if `flat`.

        Raises:
            ApplicabilityError: no teacher, or fewer than `least` features of that kind; says whose.
            SignalError: a network has no layer of that name.
            SettingError: both sides are named, in different numbers; or a teacher is named that is not there.
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
    """D of such a vector."""
    return vector(torch.empty(1, *shape, device="meta"), maps).shape[1]


def require_positions(method: str, pairs: Mapping[str, Sequence[Pair]], *, wide: bool = False) -> None:
    """Refuse pairs that share a single position (or, where `wide`, a single column), of which nothing can be compared.

    Raises:
        ApplicabilityError: names the layers, and their shapes.
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
    """Height and width of the space in which two features of any shape are compared."""
    sides = [as_map(torch.empty(1, *shape, device="meta")) for shape in (pair.mine, pair.theirs)]
    height, width = same_space(sides[0], sides[1])[0].shape[2:]
    return height, width


def is_map(shape: Shape) -> bool:
    """Whether a feature has more than one position; channels come first."""
    return prod(shape[1:]) > 1


def chosen(choice: LayerChoice, spec: OutputSpec, activation: Activation = "after") -> dict[Signal, Shape]:
    """Features of a network by the rule, with their shapes; none where it has none."""
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
    """What a method needs that reads these pairs of features, and the other signals of the student."""
    student = {pair.student for of_teacher in pairs.values() for pair in of_teacher}
    teachers = {name: frozenset(pair.teacher for pair in of_teacher) for name, of_teacher in pairs.items()}
    return {STUDENT: frozenset({*others, *student}), **teachers}


@dataclass(frozen=True, slots=True)
class PairedFeatures:
    """The features that are compared with one teacher's, on the rows that it and the student saw.

    Both sides are in the order of the pairs; the teacher's have no gradient.
    """

    name: str
    """The teacher's."""
    student: list[Tensor]
    teacher: list[Tensor]
    rows: Tensor | None
    """These rows of the batch; None: all of them."""
    share: float
    """Of the distillation loss: 1 / number of teachers."""

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's feature beside the teacher's."""
        return zip(self.student, self.teacher, strict=True)

    def empty(self) -> bool:
        """Whether there is no such row."""
        return len(self.student[0]) == 0

    def term(self, loss: Tensor) -> Term:
        """A loss as a term: one value for each of these rows, or a scalar of the whole batch."""
        return Term(loss, self.share)

    def empty_term(self) -> Term:
        """The term of no rows (0,), with a gradient to every feature: layers may refuse an empty batch (BatchNorm)."""
        return self.term(torch.stack([feature.flatten(1).sum(1) for feature in self.student]).sum(0))


def paired_features(
    pairs: Pairs, student: Outputs, batch: Batch, teachers: Mapping[str, Teacher]
) -> Iterator[PairedFeatures]:
    """Run one teacher after another, and pair its features with the student's."""
    for name, of_teacher in pairs.items():
        yield PairedFeatures(name, *shared_features(of_teacher, student, teachers[name](batch)), 1 / len(pairs))


def shared_features(
    pairs: Iterable[Pair], student: Outputs, teacher: Outputs
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Both sides' features on the rows that both saw, the teacher's without gradient; and those rows of the batch."""
    of_student, of_teacher, rows = shared_rows(student, teacher)
    pairs = list(pairs)
    return (
        [picked(student.need(pair.student), of_student) for pair in pairs],
        [picked(teacher.need(pair.teacher), of_teacher).detach() for pair in pairs],
        rows,
    )

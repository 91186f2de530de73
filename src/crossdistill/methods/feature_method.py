"""Which layers of two networks are compared: by name, or chosen from their sizes.

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

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.errors import ApplicabilityError, SettingError, nearest
from crossdistill.losses.spatial import as_map, as_vector, pooled_vector, same_space
from crossdistill.method import STUDENT, Activation, MethodConfig, Progress, Term
from crossdistill.methods.loss_weights import Shares, Signals, Taught
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
        found: dict[str, tuple[Pair, ...]] = {}
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
            found[name] = tuple(Pair(a, b, one, other) for (a, one), (b, other) in ends)
        return found

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
        found = chosen(choice, spec, self.activation)
        if len(found) < least:
            kind = "spatial features (more than one position)" if choice == "maps" else "features besides its logits"
            shown = ", ".join(f"{tap} {shape}" for tap, shape in spec.features.items()) or "none"
            raise ApplicabilityError(
                f"{self.name} needs {least} or more {kind}, and {who} shows {len(found)}; its taps are: {shown}"
            )
        return found


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
    for name, found in pairs.items():
        for pair in found:
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


class PairedMethod(Taught):
    """A method that reads features in pairs, of the student and of each teacher."""

    def __init__(self, config: Shares, pairs: Mapping[str, Sequence[Pair]], labelled_fraction: float) -> None:
        super().__init__(config, pairs, labelled_fraction)
        self.pairs = {name: tuple(found) for name, found in pairs.items()}

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        """The features on both sides, and the student's logits for its task."""
        mine = {pair.student for found in self.pairs.values() for pair in found}
        theirs = {name: frozenset(pair.teacher for pair in found) for name, found in self.pairs.items()}
        return {STUDENT: frozenset({Signal.LOGITS, *mine}), **theirs}


class FeatureMethod(PairedMethod):
    """A method whose signal is a comparison of features, pair by pair, with each teacher by itself."""

    @abc.abstractmethod
    def compare(
        self, teacher: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        """Named losses between the student's features and one teacher's, on the rows that both saw.

        A loss holds a value for each of these rows, or is a scalar of the whole batch. Without any row only a method
        that compares rows is asked, because it has to meet the other ranks all the same.
        """

    def signals(self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher], progress: Progress) -> Signals:
        """A comparison with each teacher, averaged over teachers."""
        terms: dict[str, Term] = {}
        for name, found in self.pairs.items():
            given = teachers[name](batch)
            mine, theirs, _ = met(found, student, given)
            # Batch norm in a projector takes no empty batch.
            empty = len(mine[0]) == 0 and not self.batch_relational
            losses = {self.config.name: no_rows(mine)} if empty else self.compare(name, mine, theirs, progress)
            terms |= {f"{key}/{name}": Term(value, 1 / len(self.pairs)) for key, value in losses.items()}
        return terms, {}


def met(pairs: Iterable[Pair], student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Both sides' features on the rows that both saw, the teacher's without gradient; and those rows of the batch."""
    mine, theirs, rows = shared_rows(student, teacher)
    pairs = list(pairs)
    return (
        [picked(student.need(pair.student), mine) for pair in pairs],
        [picked(teacher.need(pair.teacher), theirs).detach() for pair in pairs],
        rows,
    )


def no_rows(features: Sequence[Tensor]) -> Tensor:
    """The loss of no rows (0,), which still hangs on the graph of every feature."""
    return torch.stack([feature.flatten(1).sum(1) for feature in features]).sum(0)

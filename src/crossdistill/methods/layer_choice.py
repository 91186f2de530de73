"""The layers that methods on features compare: the default choice, and a check of their sizes.

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
| multi-distillation | blocks 4, 8 and 12 of teachers, the student's last | the same, or the nearest thirds of theirs |
| translate | summary and patch tokens of the last layer | the penultimate layer and the last spatial one, after it |
| specialise (mst-distill) | an intermediate and the penultimate layer | a middle and a late layer, before activation |
| kd, dkd, dist, mlkd, mlld, dml, collaborate, route, supervised | logits | logits |

Two differ on purpose: hints compare two pairs, as MST-Distill's FitNets do, instead of the one of Romero et al., which
recipes of picture sets compare (the second stage, as mdistiller); and
ReviewKD pools its last map before the activation, whereas mdistiller pools after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from crossdistill.errors import ApplicabilityError
from crossdistill.losses.spatial import as_map, same_space
from crossdistill.method import Activation
from crossdistill.outputs import OutputSpec, Signal

Shape = tuple[int, ...]

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

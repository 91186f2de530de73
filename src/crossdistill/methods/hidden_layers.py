"""A network's penultimate and intermediate layers, found by running it: the default taps of masks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch, Input
from crossdistill.network import Network

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """One executed layer, with its inputs and its output."""

    name: str
    layer: nn.Module
    inputs: tuple[Any, ...]
    value: Tensor

    def dimensions(self) -> int:
        """Dimensions of the weight: 2 or more if the layer mixes units, 1 if it scales them, 0 without a weight."""
        weight = getattr(self.layer, "weight", None)
        return weight.ndim if isinstance(weight, Tensor) else 0


def hidden_layers(network: Network, batch: Batch, fits: Callable[[Shape], bool]) -> tuple[str, ...]:
    """The intermediate and the penultimate layer, in execution order; fewer if the network has fewer.

    Candidates are submodules without children that run once per pass and return one tensor whose shape (without the
    batch) `fits`. The output of the penultimate layer is the input of the last linear layer, possibly flattened; of
    several such layers the first is taken, so that a map stays a map. If there is none (the activation is a function),
    it is the last preceding layer with weights. The intermediate layer is the last layer with weights before those that
    compute the penultimate value; in a multimodal network, one that depends on all modalities ("post-fusion" in the
    paper).
    """
    runs = _runs(network, batch)
    linear = [index for index, run in enumerate(runs) if isinstance(run.layer, nn.Linear)]
    mixing = [index for index, run in enumerate(runs) if run.dimensions() > 1]
    last = (linear or mixing or [0])[-1]
    before = [run for run in runs[:last] if fits(tuple(run.value.shape[1:]))]
    weighted = [run for run in before if run.dimensions()]
    penultimate = next((run for run in before if _feeds(run.value, runs[last])), weighted[-1] if weighted else None)
    if penultimate is None:
        return ()
    names = [run.name for run in runs]
    sources = [run for run in runs[: names.index(penultimate.name) + 1] if run.dimensions() > 1]
    # From here on, values consist of the same units as the penultimate layer's value.
    end = names.index(sources[-1].name) if sources else names.index(penultimate.name)
    earlier = [run for run in before if names.index(run.name) < end]
    fused = _reached_by_all(network, batch, [run.name for run in earlier])
    weighted = [run for run in earlier if run.name in fused and run.dimensions()]
    # A fusion of branches may consist of a layer without weights.
    choices = (weighted, [run for run in earlier if run.name in fused] if len(network.reads) > 1 else [])
    intermediate = next((layers[-1].name for layers in choices if layers), None)
    return (penultimate.name,) if intermediate is None else (intermediate, penultimate.name)


def _feeds(value: Tensor, reader: _Run) -> bool:
    """Whether this value is the input of a layer, as it is or flattened."""
    read = reader.inputs[0] if reader.inputs else None
    if not isinstance(read, Tensor) or read.numel() != value.numel() or len(read) != len(value):
        return False
    return torch.equal(read.flatten(1), value.flatten(1))


def _runs(network: Network, batch: Batch) -> list[_Run]:
    """Layers that ran once in an evaluation pass and returned one tensor with a row per row of the batch, in order."""
    seen: list[_Run] = []
    counts: dict[str, int] = {}
    modes = {module: module.training for module in network.modules()}
    handles = []

    def keep(name: str, layer: nn.Module, inputs: tuple[Any, ...], value: Any) -> None:
        counts[name] = counts.get(name, 0) + 1
        if isinstance(value, Tensor) and value.is_floating_point() and len(value) == len(batch):
            # A later layer may change it in place.
            kept = tuple(item.clone() if isinstance(item, Tensor) else item for item in inputs)
            seen.append(_Run(name, layer, kept, value.clone()))

    try:
        for name, layer in network.module.named_modules():
            if name and not any(True for _ in layer.children()):
                handles.append(layer.register_forward_hook(lambda m, args, out, name=name: keep(name, m, args, out)))
        network.eval()
        with torch.no_grad():
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return [run for run in seen if counts[run.name] == 1]


def _reached_by_all(network: Network, batch: Batch, names: list[str]) -> set[str]:
    """The layers whose value depends on every modality: it changes when the rows of any one of them are rolled."""
    reached = set(names)
    for modality in network.reads if len(network.reads) > 1 else ():
        moved = replace(batch, inputs={**batch.inputs, modality: _rolled(batch.inputs[modality])})
        as_they_are, others = ({run.name: run.value for run in _runs(network, rows)} for rows in (batch, moved))
        reached &= {name for name, value in as_they_are.items() if not torch.equal(value, others[name])}
    return reached


def _rolled(value: Input) -> Input:
    if isinstance(value, Tensor):
        return value.roll(1, 0)
    changed: Mapping[str, Tensor] = {name: part.roll(1, 0) for name, part in value.items()}
    return changed

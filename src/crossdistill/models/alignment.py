"""Permutation alignment of networks like HuBERT: units of one are put into the order of another's, outputs unchanged.

Convolution channels, units of the feed-forward parts, heads of the attention and dimensions inside of a head have no
order of their own. They are matched by the correlation of their activations and the Hungarian algorithm (arXiv
2506.11403). The residual stream keeps its order, so that the matches are independent of each other. Networks with
relative positions that depend on the head (WavLM) keep the order of their attention.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crossdistill.errors import MissingExtraError, SettingError

CONV = re.compile(r"^(.*?)feature_extractor\.conv_layers\.(\d+)\.conv\.weight$")
LAYER = re.compile(r"^(.*?)encoder\.layers\.(\d+)\.(.+)$")

Permutations = Mapping[str, Int64[Tensor, " units"]]
"""Name of a group of units ("conv.0", "layers.1.units") -> the unit at each place of the aligned network."""


def permuted(state: Mapping[str, Tensor], permutations: Permutations) -> dict[str, Tensor]:
    """A state dict with its units in another order; the network's outputs are the same, to rounding.

    Raises:
        SettingError: the network has no such group of units, or it has another size.
    """
    groups = _groups(state)
    result = dict(state)
    for name, order in permutations.items():
        if name not in groups:
            raise SettingError(f"alignment: the network has no units {name!r}")
        for key, dimension in groups[name]:
            if result[key].shape[dimension] != len(order):
                raise SettingError(f"alignment: {key!r} has shape {tuple(result[key].shape)}, for {len(order)} units")
            result[key] = result[key].index_select(dimension, order)
    return result


@torch.no_grad()
def permutations_to(reference: nn.Module, other: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The order of `other`'s units in which their activations correlate most with those of `reference`.

    Args:
        reference: a network of transformers such as HubertModel.
        other: one of the same shape.
        batches: waves (B, samples) that both read; a few minutes of both domains suffice.

    Raises:
        SettingError: the networks have no units that are known here, or there are no waves.
        MissingExtraError: scipy is not installed.
    """
    check_alignable(reference)
    groups, heads = _groups(reference.state_dict()), _heads(reference)
    correlations = {name: _Correlation() for name in groups}
    modes = reference.training, other.training
    for wave in batches:
        seen = [_activations(network.eval(), wave, correlations) for network in (reference, other)]
        for name, values in seen[0].items():
            correlations[name].add(values, seen[1][name])
    reference.train(modes[0])
    other.train(modes[1])
    known = {name: correlation.value() for name, correlation in correlations.items() if correlation.count}
    if not known:
        raise SettingError("alignment: no wave was given")
    result = {name: _matched(value)[0] for name, value in known.items() if name.endswith(".units") or "conv" in name}
    for name, count in heads.items():
        if f"{name}.values" in known and f"{name}.keys" in known:
            orders = _matched_heads(known[f"{name}.values"], known[f"{name}.keys"], count)
            result[f"{name}.values"], result[f"{name}.keys"] = orders
    return result


def check_alignable(network: nn.Module) -> None:
    """Check that a network has units without an order of their own, and that the matching is installed.

    Raises:
        SettingError: it has no convolutions and layers as HuBERT has.
        MissingExtraError: scipy is not installed.
    """
    if not _groups(network.state_dict()):
        raise SettingError("alignment: the network has no convolutions and layers as HuBERT has")
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError("permutation alignment", "scipy", "audio")


def _groups(state: Mapping[str, Tensor]) -> dict[str, list[tuple[str, int]]]:
    """The groups of units of a network: the tensors that hold them, each with its dimension."""
    groups: dict[str, list[tuple[str, int]]] = {}
    gated = any("gru_rel_pos" in key for key in state)
    for key in state:
        if found := CONV.match(key):
            prefix, number = found[1], int(found[2])
            groups[f"conv.{number}"] = _of_conv(state, f"{prefix}feature_extractor.conv_layers.", number, prefix)
        elif found := LAYER.match(key):
            start, name = f"{found[1]}encoder.layers.{found[2]}.", f"layers.{found[2]}"
            if found[3] == "feed_forward.intermediate_dense.weight":
                inner, outer = f"{start}feed_forward.intermediate_dense", f"{start}feed_forward.output_dense.weight"
                groups[f"{name}.units"] = [*_own(state, inner), (outer, 1)]
            elif found[3] == "attention.q_proj.weight" and not gated:
                parts = [f"{start}attention.{part}_proj" for part in "qkv"]
                groups[f"{name}.keys"] = [*_own(state, parts[0]), *_own(state, parts[1])]
                groups[f"{name}.values"] = [*_own(state, parts[2]), (f"{start}attention.out_proj.weight", 1)]
    return groups


def _own(state: Mapping[str, Tensor], layer: str) -> list[tuple[str, int]]:
    return [(f"{layer}.{part}", 0) for part in ("weight", "bias") if f"{layer}.{part}" in state]


def _of_conv(state: Mapping[str, Tensor], layers: str, number: int, prefix: str) -> list[tuple[str, int]]:
    own = [*_own(state, f"{layers}{number}.conv"), *_own(state, f"{layers}{number}.layer_norm")]
    following = f"{layers}{number + 1}.conv.weight"
    if following in state:
        return [*own, (following, 1)]
    norm = _own(state, f"{prefix}feature_projection.layer_norm")
    return [*own, *norm, (f"{prefix}feature_projection.projection.weight", 1)]


def _heads(network: nn.Module) -> dict[str, int]:
    """Layer -> its number of heads."""
    return {
        f"layers.{found[2]}": int(module.num_heads)
        for name, module in network.named_modules()
        if (found := LAYER.match(name)) and found[3] == "attention" and hasattr(module, "num_heads")
    }


@dataclass
class _Correlation:
    """Sums of two networks' activations (frames, units), from which their correlations follow."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, first: Float[Tensor, "n units"], second: Float[Tensor, "n units"]) -> None:
        """Add the activations of some frames."""
        first, second = first.float(), second.float()
        if not self.count:
            # Sums of differences from the first frames' means: float32 keeps their digits.
            self.sums = {"first": first.mean(0), "second": second.mean(0)}
        first, second = first - self.sums["first"], second - self.sums["second"]
        new = {"a": first.sum(0), "b": second.sum(0), "aa": first.square().sum(0), "bb": second.square().sum(0)}
        new["ab"] = first.T @ second
        for name, value in new.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += len(first)

    def value(self) -> Float[Tensor, "units units"]:
        """Correlations; of constant units, 0."""
        sums, count = {name: value.double() for name, value in self.sums.items()}, self.count
        spread = [(sums[n * 2] / count - (sums[n] / count).square()).clamp(min=0).sqrt() for n in ("a", "b")]
        both = sums["ab"] / count - torch.outer(sums["a"], sums["b"]) / count**2
        scale = torch.outer(*spread)
        return torch.where(scale > 1e-12, both / scale.clamp(min=1e-12), 0.0)


def _activations(network: nn.Module, wave: Tensor, wanted: Mapping[str, object]) -> dict[str, Tensor]:
    """The activations (frames, units) of a network's groups of units for one batch of waves."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, channels_first: bool = False) -> Callable[[Tensor], None]:
        def note(value: Tensor) -> None:
            frames = value.transpose(1, 2) if channels_first else value
            seen.setdefault(name, []).append(frames.reshape(-1, frames.shape[-1]))

        return note

    hooks = []
    for path, module in network.named_modules():
        conv, layer = re.match(r"^.*?feature_extractor\.conv_layers\.(\d+)$", path), LAYER.match(path)
        if conv:
            hooks.append(_after(module, keep(f"conv.{conv[1]}", channels_first=True)))
        elif layer and layer[3] in ("feed_forward.output_dense", "attention.out_proj"):
            part = "units" if layer[3].startswith("feed") else "values"
            hooks.append(_before(module, keep(f"layers.{layer[2]}.{part}")))
        elif layer and layer[3] in ("attention.q_proj", "attention.k_proj"):
            hooks.append(_after(module, keep(f"layers.{layer[2]}.keys")))
    try:
        network(wave)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(values) for name, values in seen.items() if name in wanted}


def _after(module: nn.Module, note: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _module, _inputs, output: note(output))


def _before(module: nn.Module, note: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _module, inputs: note(inputs[0]))


def _matched(correlation: Float[Tensor, "units units"]) -> tuple[Int64[Tensor, " units"], float]:
    """For each unit of the first network that of the second, with the largest sum of correlations; and that sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(correlation.numpy(), maximize=True)
    return torch.from_numpy(columns).long(), float(correlation.numpy()[rows, columns].sum())


def _matched_heads(
    values: Float[Tensor, "D D"], keys: Float[Tensor, "D D"], heads: int
) -> tuple[Int64[Tensor, " D"], Int64[Tensor, " D"]]:
    """Orders of the dimensions of values, and of queries and keys, that keep heads together."""
    size = len(values) // heads
    inner: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    score = torch.zeros(heads, heads, dtype=torch.float64)
    for first in range(heads):
        for second in range(heads):
            rows, columns = slice(first * size, (first + 1) * size), slice(second * size, (second + 1) * size)
            (of_values, one), (of_keys, two) = _matched(values[rows, columns]), _matched(keys[rows, columns])
            inner[first, second] = of_values, of_keys
            score[first, second] = one + two
    order = _matched(score)[0].tolist()
    parts = [inner[first, second] for first, second in enumerate(order)]
    shifted = [(v + second * size, k + second * size) for (v, k), second in zip(parts, order, strict=True)]
    return torch.cat([v for v, _ in shifted]), torch.cat([k for _, k in shifted])

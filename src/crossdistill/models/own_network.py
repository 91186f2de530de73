"""Networks of the running program in recipes: modules, and functions that build them from a seed."""

import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from crossdistill.batch import Batch
from crossdistill.errors import SettingError
from crossdistill.network import Network
from crossdistill.outputs import same_values
from crossdistill.runtime.hashing import derived_seed

LIVE = "live"
"""Key that marks, in a file, an object of the running program."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and `random` inside the context; restore their states after it."""
    theirs, pythons = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(theirs)
            random.setstate(pythons)


def as_network(value: Any, modalities: Sequence[str]) -> Any:
    """A bare module, or a function that returns one, as a Network; other values are returned unchanged.

    A function draws other weights for each seed of the recipe. `modalities` are those of the data, as far as they are
    known: a single one is the input of a bare module.

    Raises:
        ValueError: the modalities of its inputs are unknown, or the function fails or returns something else.
    """
    if isinstance(value, Network) or not (isinstance(value, nn.Module) or _makes(value)):
        return value
    if isinstance(value, nn.Module):
        return Network(value, _reads(type(value).__name__, "module", modalities))
    try:
        made = _made(value, 0)
    except SettingError as error:
        raise ValueError(str(error)) from error
    if isinstance(made, Network):
        return made.holding(None, value)
    name = getattr(value, "__qualname__", repr(value))
    return Network(None, _reads(name, "factory=function", modalities), factory=value)


def _makes(value: Any) -> bool:
    return callable(value) and not isinstance(value, Mapping)


def _reads(who: str, how: str, modalities: Sequence[str]) -> Sequence[str]:
    if len(modalities) == 1:
        return modalities
    known = f"; the data have {', '.join(modalities)}" if modalities else ""
    raise ValueError(f"the modalities that {who} reads are not given; wrap it in Network({how}, reads=...){known}")


def plain_network(network: Network) -> dict[str, Any]:
    """What a recipe's file says of a network of the running program."""
    rest = {} if network.needs == "all" else {"needs": network.needs}
    make = network.factory
    if make is not None:
        name = f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', type(make).__qualname__)}"
        return {LIVE: f"factory {name}", "reads": list(network.reads), **rest}
    kind = type(network.module)
    size = sum(parameter.numel() for parameter in network.parameters() if not is_lazy(parameter))
    return {LIVE: f"{kind.__module__}.{kind.__qualname__}", "reads": list(network.reads), "parameters": size, **rest}


def frozen_weights(module: nn.Module) -> frozenset[str]:
    """Names of parameters that the user has frozen: those with `requires_grad` False."""
    return frozenset(name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad)


@contextmanager
def left_as_they_were(networks: Iterable[Network]) -> Iterator[None]:
    """Restore each parameter's `requires_grad` and each module's training mode after the context."""
    modules = [network for network in networks if network.is_made]
    parameters = [value for module in modules for value in module.parameters() if not is_lazy(value)]
    gradients = [(parameter, parameter.requires_grad) for parameter in parameters]
    modes = [(layer, layer.training) for module in modules for layer in module.modules()]
    try:
        yield
    finally:
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)
        for layer, mode in modes:
            layer.training = mode


def is_incomplete(network: Network) -> bool:
    """Whether the network has layers without sizes before the first pass (torch's `Lazy*`)."""
    return any(is_lazy(value) for value in [*network.parameters(), *network.buffers()])


def complete(network: Network, batch: Batch, seed: int) -> None:
    """Set sizes and seeded weights of layers that have none."""
    if is_incomplete(network):
        with seeded(seed):
            network.probe(batch)


def draw(network: Network, seed: int, name: str) -> Network:
    """The network of a factory for this seed and member; repeated calls give the same weights.

    Raises:
        SettingError: the factory fails, or does not return a new module.
    """
    assert network.factory is not None
    fresh = _made(network.factory, derived_seed("member", seed, name))
    module = fresh.module if isinstance(fresh, Network) else fresh
    before = _BEFORE.get(id(module))
    if before is not None and before() is module:
        raise SettingError(f"the factory of {name!r} returned the same module again; wanted a new one at each call")
    _BEFORE[id(module)] = weakref.ref(module)
    return network.holding(module, network.factory)


def made(network: Network) -> Network:
    """A network with a module, into which weights can be loaded; a factory is called."""
    return network if network.is_made else draw(network, 0, network.name)


_BEFORE: dict[int, weakref.ref[nn.Module]] = {}
"""Modules that factories have returned, to detect one that is returned again."""


def _made(make: Callable[[], Any], seed: int) -> nn.Module:
    who = getattr(make, "__qualname__", repr(make))
    try:
        with seeded(seed):
            made = make()
    except Exception as error:  # the user's code may raise any error
        raise SettingError(
            f"the factory {who} failed: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(made, nn.Module):
        raise SettingError(f"the factory {who} returned a {type(made).__name__}; wanted a torch module or a Network")
    return made


def shared_weights(networks: Mapping[str, Network]) -> dict[tuple[str, str], list[str]]:
    """Weights that two networks share, by their names in the first one."""
    weights = {name: _weights(network) for name, network in networks.items()}
    shared = {(a, b): [weights[a][key] for key in weights[a] if key in weights[b]] for a, b in combinations(weights, 2)}
    return {pair: names for pair, names in shared.items() if names}


def _weights(network: Network) -> dict[int, str]:
    return {id(value): name for name, value in network.module.state_dict(keep_vars=True).items()}


def weights_outside(network: Network, batch: Batch) -> list[str]:
    """Weights outside the module that the gradient of its outputs reaches, by their names in its code."""
    was = network.training
    network.eval()
    with torch.enable_grad():
        outputs = network(batch)
    network.train(was)
    values = [value for value in (outputs.logits, outputs.embedding) if value is not None]
    todo, seen = [value.grad_fn for value in values if value.grad_fn is not None], set()
    reached: dict[int, torch.Tensor] = {}
    while todo:
        node = todo.pop()
        seen.add(node)
        if isinstance(weight := getattr(node, "variable", None), nn.Parameter):
            reached[id(weight)] = weight
        todo += [source for source, _ in node.next_functions if source is not None and source not in seen]
    inside = {id(weight) for weight in network.module.parameters()}
    names = network.code().outside
    return [names.get(key, f"one of {tuple(weight.shape)}") for key, weight in reached.items() if key not in inside]


def watch(network: Network, batches: Iterable[Batch]) -> None:
    """Find attributes and globals that a pass changes, and that therefore cannot be part of a key.

    The first pass may fill caches; changes by later passes are recorded in `network.changing`.
    """
    was = network.training
    network.eval()
    codes = []
    with torch.no_grad():
        for batch in batches:
            network(batch)
            codes.append(network.code())
        with torch.random.fork_rng(devices=[]):
            repeats = [network(batch) for _ in range(2)]
    network.train(was)
    network.changing |= {path for before, after in pairwise(codes) for path in before.changed(after)}
    if not all(same_values(getattr(repeats[0], name), getattr(repeats[1], name)) for name in ("logits", "embedding")):
        network.changing |= {RANDOM}


RANDOM = "its output for the same row"
"""Entry of `changing` for random outputs, such as with dropout that is active in evaluation."""

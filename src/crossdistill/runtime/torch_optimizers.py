"""The optimizer classes of `torch.optim` by name, and the arguments that a recipe may set."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from crossdistill.errors import nearest

OWN_NAMES = ("adam", "adamw", "sgd")
"""Names that recipes write in lower case; every other optimizer has the name of its class."""
REFUSED = {
    "LBFGS": "it evaluates the loss several times in a step, through a closure",
    "SparseAdam": "it takes sparse gradients, and networks here have dense ones",
    "Muon": "it takes matrices alone, and a stage trains biases and norms with the same optimizer",
}
FIELDS = {"params": "trains", "lr": "optimizer.learning_rate", "weight_decay": "optimizer.weight_decay"}
"""Arguments that are fields of a stage, each with the field."""
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable", "maximize")
"""Arguments that the runner sets."""


def optimizer_classes() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """The usable classes of the installed torch, by their names in recipes."""
    classes = {
        name: kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    return {_named(name): kind for name, kind in classes.items() if name not in REFUSED}


def _named(name: str) -> str:
    return name.lower() if name.lower() in OWN_NAMES else name


def optimizer_name(value: str) -> str:
    """The name in the spelling of recipes, from any case.

    Raises:
        ValueError: torch has no such optimizer (suggests similar names), or it cannot train on batches.
    """
    for name, reason in REFUSED.items():
        if value.lower() == name.lower():
            raise ValueError(f"{name} cannot train a stage: {reason}")
    known = optimizer_classes()
    for name in known:
        if value.lower() == name.lower():
            return name
    lower = {name.lower(): name for name in known}
    close = [lower[match] for match in difflib.get_close_matches(value.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"torch {torch.__version__} has no optimizer {value!r}; {hint}known: {', '.join(sorted(known))}")


def takes(name: str, argument: str) -> bool:
    """Whether an optimizer has an argument with this name."""
    return argument in _parameters(name)


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(optimizer_classes()[name]).parameters)


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in torch's types: lists, as files contain them, become tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


def argument_faults(name: str, arguments: Mapping[str, Any], **fixed: float) -> list[str]:
    """Faults of the arguments of an optimizer, one sentence each; `fixed` are arguments that are fields of a stage."""
    fields = {**FIELDS, **({"momentum": "optimizer.momentum"} if name == "sgd" else {})}
    free = [argument for argument in _parameters(name) if argument not in fields and argument not in IMPLEMENTATION]
    faults = []
    for argument in arguments:
        if argument in fields:
            faults.append(f"arguments.{argument}: this is the field {fields[argument]}; set it there")
        elif argument in IMPLEMENTATION:
            faults.append(f"arguments.{argument}: the runner sets it")
        elif argument not in free:
            faults.append(f"arguments: {name} has no argument {argument!r}; {nearest(argument, free)}")
    if arguments and not faults:
        # Only then: making an optimizer imports PyTorch's compiler, which takes more than a second.
        try:
            optimizer_classes()[name]([torch.zeros(1, 1)], **fixed, **plain_arguments(arguments))
        except (ValueError, TypeError, RuntimeError) as error:
            faults.append(f"arguments: {name} refuses {dict(arguments)}: {' '.join(str(error).split())}")
    return faults

"""Which weights of a pretrained network train: all, the last layers, the head, LoRA adapters, or none."""

import re
from collections.abc import Iterator

from torch import nn

from crossdistill.backends.pretrained import Pretrained, blocks_of
from crossdistill.errors import MissingExtraError, SettingError

PATTERN = r"all|head|frozen|last-[1-9]\d{0,2}|lora(-[1-9]\d{0,2})?"
RANK = 8
"""Rank of LoRA's matrices where none is given."""


def check_tune(value: str) -> str:
    """The setting itself.

    Raises:
        SettingError: it is none of the known ones.
    """
    if not re.fullmatch(PATTERN, value):
        raise SettingError(f"tune: wanted all, head, frozen, last-N, lora or lora-RANK, found {value!r}")
    return value


def tune(module: nn.Module, how: str, who: str) -> list[str]:
    """Choose the weights that train, and keep the other parts of a pretrained network in evaluation mode.

    Returns a line for each thing of the body that is switched off, since it leaves out blocks or frames in training.

    Raises:
        SettingError: there are fewer layers, or no head.
        MissingExtraError: LoRA needs the package peft.
    """
    _choose_weights(module, how, who)
    if not isinstance(module, Pretrained):
        return []
    module.still = tuple(_still(module))
    return module.body.settle() if any(one.requires_grad for one in module.body.parameters()) else []


def _still(module: nn.Module) -> Iterator[str]:
    """The outermost submodules that have weights or statistics, none of which trains."""
    for name, child in module.named_children():
        values = [*child.parameters(), *child.buffers()]
        if values and not any(one.requires_grad for one in values):
            yield name
        else:
            yield from (f"{name}.{inner}" for inner in _still(child))


def _choose_weights(module: nn.Module, how: str, who: str) -> None:
    """Set `requires_grad` of all parameters; LoRA also adds its matrices to the linear layers of the body."""
    if how == "all":
        return
    if how.startswith("lora"):
        add_lora(module, int(how[5:] or RANK), who)
        return
    module.requires_grad_(False)
    if how == "frozen":
        return
    last = _last(module)
    if how == "head":
        if not last:
            raise SettingError(
                f"{who}: tune is 'head', and it has no last linear layer; for data without classes it is an encoder, "
                "which has none: give the rows labels (a folder for each class), or set tune=frozen"
            )
        for layer in last:
            layer.requires_grad_(True)
        return
    wanted = int(how[5:])
    layers = list(module.body.layers()) if isinstance(module, Pretrained) else blocks_of(module)
    if wanted > len(layers):
        raise SettingError(f"{who}: tune is {how!r}, and it has {len(layers)} layers")
    # Parameters are registered in the order of the layers: a norm after the last block trains too.
    first = next(iter(layers[-wanted].parameters()))
    reached = False
    for one in module.parameters():
        reached = reached or one is first
        one.requires_grad_(reached)
    for layer in last:
        layer.requires_grad_(True)


def _last(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, Pretrained):
        return module.trainable_last()
    linear: list[nn.Module] = [one for one in module.modules() if isinstance(one, nn.Linear)]
    return linear[-1:]


def add_lora(module: nn.Module, rank: int, who: str) -> None:
    """Add LoRA matrices of a rank to all linear layers of the body; they and the last layer can train.

    Raises:
        MissingExtraError: peft is not installed.
        SettingError: there are no linear layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError(f"{who}: tune='lora'", "peft", "lora") from error
    last = _last(module)
    body = module.body if isinstance(module, Pretrained) else module
    names = [name for name, one in body.named_modules() if isinstance(one, nn.Linear) and one not in last]
    if not names:
        raise SettingError(f"{who}: tune is 'lora', and it has no linear layers to adapt")
    module.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), body)
    for layer in last:
        layer.requires_grad_(True)
    if isinstance(module, Pretrained):
        module.lora = rank

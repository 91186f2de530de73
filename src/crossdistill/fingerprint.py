"""What weights and code are, as short texts: equal exactly when the numbers that they give are."""

import hashlib
import json
import re
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.storage import key_hash


def fingerprint(module: nn.Module) -> str:
    """A hash of every parameter and buffer: equal exactly when the weights are, bit for bit."""
    return key_hash([[name, str(tensor.dtype), tensor_hash(tensor)] for name, tensor in module.state_dict().items()])


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, as hexadecimal."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def structure(module: nn.Module) -> list[str]:
    """What weights do not say: the class of a module, and its layers with their settings (strides, activations)."""
    kind = type(module)
    # Functions among the settings print their address, which is another one in every process.
    return [f"{kind.__module__}.{kind.__qualname__}", re.sub(r" at 0x[0-9a-f]+", "", repr(module))]


def function_key(function: Callable[..., Any] | None) -> str | None:
    """A hash of a plain function's code and of the plain values that it closes over; None for anything else.

    A method, a partial or a closure over objects depends on more than can be read here.
    """
    if function is None:
        return "default"
    if not isinstance(function, FunctionType):
        return None
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    try:
        values = json.dumps([held, function.__defaults__, function.__kwdefaults__], allow_nan=False)
    except (TypeError, ValueError):
        return None
    return key_hash([function.__module__, function.__qualname__, _code_key(function.__code__), values])


def _code_key(code: CodeType) -> str:
    constants = [_code_key(value) if isinstance(value, CodeType) else repr(value) for value in code.co_consts]
    return key_hash([code.co_code.hex(), constants, code.co_names])

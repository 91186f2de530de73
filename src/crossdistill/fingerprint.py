"""What weights are, as short texts: equal exactly when the numbers that they give are."""

import hashlib
import re

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

"""Hashes of weights, files and settings, and seeds derived from any text."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers, equal exactly for weights that are equal bit for bit."""
    return key_hash([[name, str(tensor.dtype), tensor_hash(tensor)] for name, tensor in module.state_dict().items()])


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values, as hexadecimal."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def structure(module: nn.Module) -> list[str]:
    """The class of a module, and its layers with the settings that weights do not show (strides, activations)."""
    kind = type(module)
    # Functions among the settings print their address, which differs between processes.
    return [f"{kind.__module__}.{kind.__qualname__}", re.sub(r" at 0x[0-9a-f]+", "", repr(module))]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_hash(content: bytes) -> str:
    """SHA-256 of a file's content, as hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def key_hash(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def derived_seed(*parts: object) -> int:
    """A seed from the texts of any values, stable across machines and Python versions."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

"""Mixed precision of a stage: the type of its training passes, and loss scaling for float16."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

PrecisionName = Literal["float32", "bfloat16", "float16"]


class Precision:
    """Autocast and loss scaling of one stage; both are off for "float32".

    Weights, optimizer states and losses stay in float32. Gradients below the smallest float16 number would vanish:
    losses are multiplied by a scale and gradients divided by it; a step whose gradients overflow is skipped and
    halves the scale (Micikevicius et al., ICLR 2018).
    """

    def __init__(self, name: PrecisionName, device: torch.device, *, keeps_casts: bool = True) -> None:
        """`keeps_casts`: cast weights once for all passes of a step, which is impossible in a captured graph."""
        self.scales = name == "float16"
        self._device = device
        self._dtype = None if name == "float32" else getattr(torch, name)
        self._keeps_casts = keeps_casts
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.scales)

    def passes(self) -> AbstractContextManager[Any]:
        """The context in which networks and methods compute."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype, cache_enabled=self._keeps_casts)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss, multiplied by the loss scale."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscale the gradients, before they are read."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, unless a gradient overflowed."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        if self.scales:
            self._scaler.load_state_dict(state)

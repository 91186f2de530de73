"""An exponential moving average of a network's weights and buffers (Polyak and Juditsky, 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """`average ← decay · average + (1 - decay) · weights` after each step, starting from the initial weights.

    Floating-point parameters and buffers are averaged, others (counters) are copied. Buffers that the module does not
    save are ignored. Frozen weights stay exactly equal.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        saved = set(network.state_dict())
        buffers = [(name, value) for name, value in network.named_buffers() if name in saved]
        averaged = [*network.named_parameters(), *buffers]
        self._names = [name for name, _ in averaged]
        # In a tuple, so that the network's tensors are not registered in this module.
        self._live = tuple(value.detach() for _, value in averaged)
        for number, value in enumerate(self._live):
            self.register_buffer(str(number), value.clone())

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.buffers(), self._live, strict=True)

    @torch.no_grad()
    def update(self) -> None:
        """Include the current weights in the average."""
        pairs = list(self._pairs())
        fractional = [pair for pair in pairs if pair[0].is_floating_point()]
        if fractional:
            averages, weights = map(list, zip(*fractional, strict=True))
            # `lerp` leaves the average exactly unchanged where both are equal.
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the average and the network's weights."""
        for average, value in self._pairs():
            kept = value.clone()
            value.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the network has the averaged weights."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def note(self, steps: int) -> str:
        """A line for the display about the average in a stage of `steps` steps."""
        initial = self.decay**steps
        rest = f"; {initial:.0%} of its end value are the initial weights of the stage" if initial >= 0.05 else ""
        return f"validation and the result use the moving average of the weights, decay {self.decay:g}{rest}"

    def state(self) -> dict[str, Any]:
        """The averages, by the network's parameter and buffer names."""
        return dict(zip(self._names, self.buffers(), strict=True))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the averages from a result of `state`."""
        for name, average in self.state().items():
            average.copy_(state[name])

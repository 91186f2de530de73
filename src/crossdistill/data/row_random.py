"""Random numbers of rows: a function of a seed and of the row alone, whatever batch, process or epoch asks for them.

They are counted, not drawn one after another: number k of a row is SplitMix64's output k from the row's own state
(Steele, Lea and Flood, OOPSLA 2014). Arrays of unsigned integers wrap around, which is what the mixing wants.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's step from state to state."""


class RowRandom:
    """The random numbers of some rows, each named by whole numbers: its id, its view, an epoch."""

    def __init__(self, seed: int, *names: Int64[Tensor, " B"]) -> None:
        state = np.full(len(names[0]), np.uint64(seed % 2**64))
        for name in names:
            state = _mixed((state ^ name.cpu().numpy().astype(np.uint64)) + GOLDEN)
        self._state = state

    def whole(self) -> Int64[Tensor, " B"]:
        """One whole number a row, from 0 to 2⁶² - 1."""
        return torch.from_numpy((_mixed(self._state + GOLDEN) >> np.uint64(2)).astype(np.int64))

    def uniform(self, *shape: int) -> Float[Tensor, "B *shape"]:
        """So many numbers a row, in [0, 1)."""
        count = int(np.prod(shape))
        steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        bits = _mixed(self._state[:, None] + steps) >> np.uint64(40)
        return torch.from_numpy(bits.astype(np.float32) * np.float32(2**-24)).view(-1, *shape)

    def normal(self, *shape: int) -> Float[Tensor, "B *shape"]:
        """So many numbers a row, of mean 0 and standard deviation 1 (Box and Muller)."""
        count = int(np.prod(shape))
        pairs = self.uniform(2, -(-count // 2))
        # In (0, 1]: there is no logarithm of 0.
        radius = (-2 * torch.log1p(-pairs[:, 0])).sqrt()
        angle = 2 * torch.pi * pairs[:, 1]
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(-1, *shape)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed

"""Random numbers of rows: a function of a seed and the row alone, independent of batch, process and order.

Number k of a row is output k of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) from the row's state, so numbers need
not be drawn one after another. The arithmetic of unsigned integers wraps around, as SplitMix64 requires.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's increment of the state."""


class RowRandom:
    """The random numbers of rows, each identified by integers such as its id, view and epoch."""

    def __init__(self, seed: int, *names: Int64[Tensor, " B"]) -> None:
        state = np.full(len(names[0]), np.uint64(seed % 2**64))
        for name in names:
            state = _mixed((state ^ name.cpu().numpy().astype(np.uint64)) + GOLDEN)
        self._state = state

    def whole(self) -> Int64[Tensor, " B"]:
        """One integer per row, from 0 to 2⁶² - 1."""
        return torch.from_numpy((_mixed(self._state + GOLDEN) >> np.uint64(2)).astype(np.int64))

    def uniform(self, *shape: int) -> Float[Tensor, "B *shape"]:
        """Numbers in [0, 1), an array of this shape per row."""
        count = int(np.prod(shape))
        steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
        bits = _mixed(self._state[:, None] + steps) >> np.uint64(40)
        return torch.from_numpy(bits.astype(np.float32) * np.float32(2**-24)).view(-1, *shape)

    def normal(self, *shape: int) -> Float[Tensor, "B *shape"]:
        """Numbers of mean 0 and standard deviation 1 (Box and Muller), an array of this shape per row."""
        count = int(np.prod(shape))
        pairs = self.uniform(2, -(-count // 2))
        # 1 - u is in (0, 1], so its logarithm is finite.
        radius = (-2 * torch.log1p(-pairs[:, 0])).sqrt()
        angle = 2 * torch.pi * pairs[:, 1]
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].reshape(-1, *shape)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed

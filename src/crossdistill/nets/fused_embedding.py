"""Embeddings of several teachers as one: mapped to unit vectors, summed with weights, and normalised again."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.losses.spatial import as_vector


class FusedEmbedding(nn.Module):
    """normalise(Σ_k c_k · normalise(W_k f_k + b_k)), as the released RichKD computes it.

    With `trains` False the maps are fixed random ones: rows (or columns) of an orthogonal matrix, without bias. Losses
    that attract without repelling need these, since maps on both sides would all become constant.
    """

    def __init__(self, sizes: Sequence[int], width: int, *, trains: bool = True) -> None:
        super().__init__()
        self.trains = trains
        self.maps = nn.ModuleList(nn.Linear(size, width) for size in sizes) if trains else nn.ModuleList()
        for number, size in enumerate(() if trains else sizes):
            self.register_buffer(f"map{number}", nn.init.orthogonal_(torch.empty(width, size)))

    def forward(
        self, features: Sequence[tuple[Tensor, Tensor | None]], coefficients: Float[Tensor, "K B"]
    ) -> Float[Tensor, "B W"]:
        """The fused unit vectors of a batch; those of rows without any part are 0.

        `features` are the embeddings (R, D_k) of each part and their rows in the batch (None: all of them).
        """
        total = coefficients.new_zeros(())
        for number, ((feature, rows), weights) in enumerate(zip(features, coefficients, strict=True)):
            vectors = self._mapped(number, as_vector(feature)) * (weights if rows is None else weights[rows]).unsqueeze(
                1
            )
            if rows is not None:
                vectors = vectors.new_zeros((coefficients.shape[1], vectors.shape[1])).index_copy(0, rows, vectors)
            total = total + vectors
        return functional.normalize(total, dim=1)

    def _mapped(self, number: int, feature: Tensor) -> Tensor:
        if self.trains:
            return functional.normalize(self.maps[number](feature), dim=1)
        return functional.normalize(feature @ self.get_buffer(f"map{number}").T, dim=1)

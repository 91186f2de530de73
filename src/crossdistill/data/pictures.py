"""Pictures of one size in memory, as bytes that are normalised when a batch needs them, after their augmentation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.rendered import Rendered
from crossdistill.data.rendering import PictureRendering, Rendering
from crossdistill.errors import DataError
from crossdistill.runtime.hashing import key_hash


@dataclass(frozen=True, eq=False)
class Pictures:
    """A row source: pictures in memory or memory-mapped; a quarter of the memory of normalised ones."""

    values: UInt8[Tensor, "N C H W"]
    rendering: PictureRendering
    content: str
    """A hash of `values`."""
    modality: str = "image"
    dtype: torch.dtype = torch.float32
    deterministic: bool = True
    in_memory: bool = True

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, channels, height, width)."""
        return (len(self.values), *self.rendering.shape)

    @property
    def spec(self) -> InputSpec:
        """The format of a normalised picture."""
        return self.rendering.spec(self.rendering.shape)

    @property
    def fingerprint(self) -> str:
        """A hash of the content and of the preparation."""
        return key_hash([self.content, self.rendering.key])

    def fetch(self, rows: Int64[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
        """Normalised pictures, without augmentation."""
        return self.rendering.apply(self.values[rows])

    def rendered(self, rendering: Rendering) -> Rendered:
        """The same pictures in another rendering, made of the augmented ones.

        Raises:
            DataError: it is no rendering of pictures.
        """
        if not isinstance(rendering, PictureRendering):
            raise DataError(f"pictures take a PictureRendering, found a {type(rendering).__name__}")
        return Rendered(self.modality, self.values, self.spec, rendering)

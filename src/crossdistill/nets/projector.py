"""Projectors: map a feature of any shape to class logits or to a unit vector."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.losses.spatial import as_map, as_vector
from crossdistill.nets.norm import Gather, JointNorm, Layers, alone


def logit_projector(shape: tuple[int, ...], classes: int) -> "VectorProjector | MapProjector":
    """One-for-all's projector for a feature of this shape (without the batch), initialised as released."""
    spatial = any(size > 1 for size in shape[1:])
    made = MapProjector(shape[0], classes) if spatial else VectorProjector(shape[0], classes)
    made.apply(_initialise)
    return made


class VectorProjector(nn.Module):
    """Linear(D, 2C), ReLU, Linear(2C, C); (D, 1, 1) is a vector too."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * classes)
        self.fc2 = nn.Linear(2 * classes, classes)

    def forward(self, feature: Float[Tensor, "B D *one"], gather: Gather = alone) -> Float[Tensor, "B C"]:
        """Class logits."""
        logits: Tensor = self.fc2(functional.relu(self.fc1(feature.flatten(1))))
        return logits


class MapProjector(nn.Module):
    """Two separable convolutions to twice the channels and to 2C, each halving the map, then mean and Linear(2C, C)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = Layers(_separable(channels, 2 * channels), _separable(2 * channels, 2 * classes))
        self.fc = nn.Linear(2 * classes, classes)

    def forward(self, feature: Float[Tensor, "B D *space"], gather: Gather = alone) -> Float[Tensor, "B C"]:
        """Class logits."""
        logits: Tensor = self.fc(self.body(as_map(feature), gather).mean(dim=(2, 3)))
        return logits


class UnitEmbedding(nn.Module):
    """A linear map to `width` numbers, normalised to length 1; maps are first averaged per channel."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, width)

    def forward(self, feature: Float[Tensor, "B D *space"]) -> Float[Tensor, "B W"]:
        """Unit vectors."""
        return functional.normalize(self.fc(as_vector(feature)), dim=1)


def _separable(channels: int, out: int) -> Layers:
    def half(stride: int, out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, out, 1, bias=False),
            JointNorm(out),
            nn.ReLU(),
        ]

    return Layers(*half(2, channels), *half(1, out))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

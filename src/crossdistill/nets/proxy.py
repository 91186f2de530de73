"""Proxies: small classifiers on features, between which C2KD distils."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.losses.spatial import as_map
from crossdistill.nets.norm import Gather, JointNorm, alone


def proxy_for(shape: tuple[int, ...], logits: tuple[int, ...]) -> nn.Module:
    """The proxy between a feature and logits of these shapes (without the batch), initialised as released.

    `DenseProxy` for dense logits (C, H, W), else `MapProxy` for maps and `VectorProxy` for vectors.
    """
    if len(logits) > 1:
        return DenseProxy(shape[0], logits[0], logits[1:])
    if any(size > 1 for size in shape[1:]):
        return MapProxy(shape[0], logits[0])
    return VectorProxy(shape[0], logits[0])


class VectorProxy(nn.Module):
    """Linear(D, D), BatchNorm, LeakyReLU(0.1), Linear(D, C); both layers are initialised by `_initialise`."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.norm = JointNorm(width)
        self.fc2 = nn.Linear(width, classes)
        self.apply(_initialise)

    def forward(self, feature: Float[Tensor, "B D *one"], gather: Gather = alone) -> Float[Tensor, "B C"]:
        """Class logits."""
        hidden = self.norm(self.fc1(feature.flatten(1)), gather)
        logits: Tensor = self.fc2(functional.leaky_relu(hidden, 0.1))
        return logits


class MapProxy(nn.Module):
    """Mean over positions, pointwise convolution without bias, BatchNorm, LeakyReLU(0.1), Linear(D, C).

    The convolution is initialised by `_initialise`, and the linear layer by PyTorch's default.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = JointNorm(channels)
        self.fc = nn.Linear(channels, classes)
        # The convolution only: the released code omits this proxy's linear layer.
        self.convolution.apply(_initialise)

    def forward(self, feature: Float[Tensor, "B D *space"], gather: Gather = alone) -> Float[Tensor, "B C"]:
        """Class logits."""
        hidden = self.norm(self.convolution(as_map(feature).mean(dim=(2, 3), keepdim=True)), gather)
        logits: Tensor = self.fc(functional.leaky_relu(hidden, 0.1).flatten(1))
        return logits


class DenseProxy(nn.Module):
    """Pointwise convolution without bias, BatchNorm, ReLU, pointwise convolution to C, bilinear to the logits' size.

    Both convolutions are initialised by `_initialise`.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.convolution = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = JointNorm(channels)
        self.out = nn.Conv2d(channels, classes, 1)
        self.apply(_initialise)

    def forward(self, feature: Float[Tensor, "B D *space"], gather: Gather = alone) -> Float[Tensor, "B C H W"]:
        """Dense class logits."""
        logits = self.out(functional.relu(self.norm(self.convolution(as_map(feature)), gather)))
        return functional.interpolate(logits, self.size, mode="bilinear", align_corners=False)


def _initialise(module: nn.Module) -> None:
    """Weights from a normal distribution of standard deviation √(2 / outputs), biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)

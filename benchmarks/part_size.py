"""A pass without gradient in parts whose size follows from the memory of the layers / in parts of 1,024 rows.

Time and peak memory of the layers of ResNet-32 for images of 32 x 32 (He et al., 2016; 0.46 M parameters) over 1,000
rows, the size of a validation split.
"""

import torch
from measure import Script, ratios
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.batch import Batch
from crossdistill.planning.part_size import held_at_peak, rows_at_once

ROWS, AT_ONCE, ROUNDS = 1000, 1024, 5


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a 1 x 1 convolution if sizes differ."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(2))
        same = inside == outside
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W)."""
        inner = functional.relu(self.norms[0](self.first(maps)))
        return functional.relu(self.norms[1](self.second(inner)) + self.shortcut(maps))


def resnet32(classes: int = 10) -> nn.Sequential:
    """A network from images (B, 3, 32, 32) to logits (B, classes)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for outside, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(5):
            layers.append(Block(inside, outside, stride if number == 0 else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def main() -> None:
    """Measure time and memory of both sizes."""
    script = Script(__file__)
    network = resnet32().eval().to(script.device)
    pictures = torch.randn(ROWS, 3, 32, 32, device=script.device)

    def batch(number: int) -> Batch:
        return Batch({"picture": pictures[:number]}, torch.arange(number))

    def answer(rows: Batch) -> Tensor:
        picture = rows.inputs["picture"]
        assert isinstance(picture, Tensor)
        logits: Tensor = network(picture)
        return logits

    @torch.no_grad()
    def whole(size: int) -> None:
        for start in range(0, ROWS, size):
            network(pictures[start : start + size])

    size = rows_at_once(answer, batch, ROWS, script.device)
    print(f"  {size} rows at once, of {ROWS}")
    with torch.no_grad():
        held = [held_at_peak(answer, batch(number)) for number in (size, min(ROWS, AT_ONCE))]
    counted, large = script.alternate([lambda: whole(size), lambda: whole(AT_ONCE)], ROUNDS)
    name = f"resnet32 over {ROWS:,} rows without gradient: parts as counted / {AT_ONCE:,} rows at once"
    script.ratio(name, ratios(counted, large), 0.8 if script.on_cpu else 1.1)
    script.value(f"{name}, memory of layers", held[0] / held[1], 0.2 if script.on_cpu else 1.0)


if __name__ == "__main__":
    main()

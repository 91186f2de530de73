"""MST-Distill in Python, on arrays of your own: a radar student, with a camera teacher and one that reads both.

    python examples/mst_distill.py

All networks train together; masks then adapt the two frozen teachers to the student; at last the student trains, with a
gate that selects a teacher for each row. Some seconds on a CPU; writes the folder runs/mst-distill.
"""

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill import Dataset, Network, Recipe, Stage, run


def mlp(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(24)

    def forward(self, camera: Tensor, radar: Tensor) -> Tensor:
        return self.layers(torch.cat([camera, radar], dim=1))


draw = np.random.default_rng(0)
targets = draw.integers(4, size=2000)
camera = draw.normal(size=(4, 16))[targets] + draw.normal(size=(2000, 16))
radar = draw.normal(size=(4, 8))[targets] + 1.5 * draw.normal(size=(2000, 8))
has_camera = draw.random(2000) < 0.9  # the other rows have no camera: a teacher that reads it skips them
data = Dataset.from_arrays("mine", {"camera": camera, "radar": radar}, targets, present={"camera": has_camera})
torch.manual_seed(0)
recipe = Recipe(
    data=data,
    student=Network(mlp(8), reads="radar"),
    teachers={"both": Network(Both(), reads=("camera", "radar")), "camera": Network(mlp(16), reads="camera")},
    stages=(
        Stage(method="collaborate", trains=("student", "both", "camera"), epochs=4, select="last"),
        Stage(method="specialise", trains=(), epochs=2),
        Stage(method="route", epochs=8),
    ),
)
print(run(recipe, "runs/mst-distill", resume=True))

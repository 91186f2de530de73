"""A small student from your own modules and arrays: it reads radar alone, its teacher reads camera and radar.

    python examples/own_models.py

A few seconds on a CPU; writes the folder runs/own-models.
"""

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill import Dataset, Network, Recipe, Stage, load_student, run


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, camera: Tensor, radar: Tensor) -> Tensor:
        return self.layers(torch.cat([camera, radar], dim=1))


def alone() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


torch.manual_seed(0)
draw = np.random.default_rng(0)
targets = draw.integers(4, size=2000)
camera = draw.normal(size=(4, 16))[targets] + draw.normal(size=(2000, 16))
radar = draw.normal(size=(4, 8))[targets] + 1.5 * draw.normal(size=(2000, 8))
few = draw.random(2000) < 0.05  # rows whose labels the student uses; its teacher uses all

recipe = Recipe(
    data=Dataset.from_arrays("mine", {"camera": camera, "radar": radar}, targets, labelled=few),
    student=Network(alone(), reads="radar"),
    teachers={"both": Network(Both(), reads=("camera", "radar"))},
    stages=(Stage(method="supervised", learner="both", epochs=6), Stage(method="kd", epochs=16)),
)
print(run(recipe, "runs/own-models", resume=True))

student = load_student("runs/own-models", module=alone())
print(student.logits({"radar": torch.tensor(radar[:5]).float()}).argmax(1))

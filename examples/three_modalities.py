"""Three modalities, of which a row may lack one: a handwritten digit, a spoken one, and its name in letters.

    python examples/three_modalities.py

The student hears the digit alone and has 10 % of the labels; its teachers read the other modalities, or all three.
Half a minute on a CPU; writes the folder runs/three-modalities.
"""

import sys

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill import Dataset, ExperimentSetup, Network, NetworkConfig, compare
from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.recipes.setup import Length

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def letters() -> nn.Module:
    return nn.Sequential(nn.Embedding(27, 8), nn.Flatten(), nn.Linear(5 * 8, 32), nn.ReLU(), nn.Linear(32, 10))


class All(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8, 32))
        self.audio = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 32))
        self.name = nn.Sequential(nn.Embedding(27, 8), nn.Flatten(), nn.Linear(5 * 8, 32))
        self.joint = nn.Sequential(nn.ReLU(), nn.Linear(3 * 32, 32))
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(32, 10))

    def forward(self, image: Tensor, audio: Tensor, name: Tensor) -> Tensor:
        return self.classify(self.joint(torch.cat([self.image(image), self.audio(audio), self.name(name)], dim=1)))


tiny = "--tiny" in sys.argv
digits = (AvDigitsConfig().tiny() if tiny else AvDigitsConfig()).load()
tokens = np.array([[ord(letter) - 96 if letter != "-" else 0 for letter in name.ljust(5, "-")] for name in NAMES])
draw = np.random.default_rng(0)
lacks = np.where(draw.random(len(digits)) < 0.3, draw.integers(3, size=len(digits)), -1)  # -1: the row has all three
data = Dataset.from_arrays(
    "three-modalities",
    {"image": digits.inputs["image"], "audio": digits.inputs["audio"], "name": tokens[digits.targets]},
    digits.targets,
    splits=digits.splits,
    present={modality: lacks != number for number, modality in enumerate(("image", "audio", "name"))},
)
setup = ExperimentSetup(
    data=data,
    networks={
        "image": NetworkConfig(model="small-image"),
        "audio": NetworkConfig(model="small-audio"),
        "name": Network(factory=letters, reads="name", taps=("0", "2")),
    },
    taps={"image": ("conv2", "fc1"), "audio": ("conv3", "fc1")},
    # needs="any": rows that lack some of the inputs are used too, with zeros in their place
    multimodal=Network(factory=All, reads=("image", "audio", "name"), taps=("joint", "classify"), needs="any"),
    supervised=Length(epochs=3, learning_rate=2e-3),
    collaborate=Length(epochs=2, learning_rate=2e-3),
    specialise=Length(epochs=1, learning_rate=1e-4),
    distil=Length(epochs=5, learning_rate=2e-3),
)
methods = ["supervised", "kd", "mst-distill"]
print(compare(setup, methods, students=["audio"], labelled=[0.1], seeds=1, tiny=tiny, out="runs/three-modalities"))

"""AV-MNIST at the published sizes (MST-Distill, Table 1); 100 epochs a stage, Adam 1e-4, batch 512.

    crossdistill run av-mnist/mst-distill --set data.root=FOLDER --set student=audio

Published accuracies (mean of five runs, split by sample): image student alone 0.6322, KD 0.6322, MST-Distill 0.6359;
audio student alone 0.4372, KD 0.4383, MST-Distill 0.4381.
"""

from typing import Literal

from crossdistill.data.sets.av_mnist import AvMnistConfig
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes.setup import ExperimentSetup, Fraction, Kind, Length, Seed, activated, kd_for, route_for
from crossdistill.recipes.stages import recipe


def setup(
    *,
    labelled: float = 1.0,
    seed: int = 0,
    rows: int | None = None,
    epochs: int = 100,
    learning_rate: float = 1e-4,
    batch_size: int = 512,
    width_factor: int = 2,
    channels_last: bool = False,
) -> ExperimentSetup:
    """LeNet5, ThreeLayerCNN-A and CNN-I; `seed` also draws the split, as in the paper.

    `rows`, `epochs` (of every stage), `learning_rate`, `batch_size`, `width_factor` and `channels_last` adapt it to a
    machine without an accelerator; their defaults are the published ones.
    """
    length = Length(epochs=epochs, learning_rate=learning_rate)
    return ExperimentSetup(
        data=AvMnistConfig(labelled=labelled, seed=seed, rows=rows),
        networks={"image": NetworkConfig(model="lenet5"), "audio": NetworkConfig(model="three-layer-cnn-a")},
        multimodal=NetworkConfig(model="cnn-i"),
        taps={"image": ("conv3", "fc1"), "audio": ("conv2", "conv3"), "mm": ("concat_identity", "fc1")},
        maps={
            "image": {"image": ("conv1", "conv2")},
            "audio": {"audio": ("conv1", "conv2", "conv3")},
            "mm": {
                "image": ("image.conv1", "image.conv2"),
                "audio": tuple(f"audio.conv{number}" for number in range(1, 6)),
            },
        },
        activated={
            "image": activated("conv1", "conv2", "conv3", "fc1"),
            "audio": activated("conv1", "conv2", "conv3"),
            "mm": activated("image.conv1", "image.conv2", *(f"audio.conv{number}" for number in range(1, 6))),
        },
        penultimates={"audio": "conv3_maxpool_flatten"},
        unflattened={"audio": "conv3_maxpool"},
        hints={
            "image": {"audio": (("conv1", "flatten_identity"), ("conv2", "conv3_maxpool_flatten"))},
            "audio": {"image": (("conv2", "conv3_maxpool_flatten"), ("conv1", "flatten_identity"))},
        },
        batch_size=batch_size,
        supervised=length,
        collaborate=length,
        specialise=length,
        distil=length,
        width_factor=width_factor,
        channels_last=channels_last,
        kd=kd_for(labelled),
        route=route_for(labelled),
    )


def av_mnist(
    method: str,
    *,
    student: Literal["image", "audio"] = "image",
    teachers: Kind | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
    rows: int | None = None,
    epochs: int = 100,
    learning_rate: float = 1e-4,
    batch_size: int = 512,
    width_factor: int = 2,
    channels_last: bool = False,
) -> Recipe:
    """A method on `av-mnist`; `data.root` or CROSSDISTILL_DATA is the folder of the data."""
    made = setup(
        labelled=labelled,
        seed=seed,
        rows=rows,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        width_factor=width_factor,
        channels_last=channels_last,
    )
    return recipe(made, method, student=student, teachers=teachers, seed=seed, control=control)

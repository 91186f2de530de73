"""Recipes for the embedded data: small networks on handwritten and spoken digits, in seconds on a laptop.

crossdistill run av-digits/mst-distill --set student=audio --set labelled=0.05
"""

from typing import Literal

from crossdistill.data.sets.av_digits import AvDigitsConfig
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes.setup import ExperimentSetup, Fraction, Kind, Length, Seed, activated, kd_for, route_for
from crossdistill.recipes.stages import recipe


def setup(*, labelled: float = 1.0, seed: int = 0) -> ExperimentSetup:
    """Smaller versions of the AV-MNIST networks. The split is fixed; `seed` draws weights, order and kept labels.

    With all labels the weights are the published ones. With few labels, weights and temperature were chosen on
    validation, at 5 % of labels and seed 0, from a few candidates for each method (LOG.md): they weight the teachers
    more, since few labels carry little information.
    """
    return ExperimentSetup(
        data=AvDigitsConfig(labelled=labelled, label_seed=seed),
        networks={"image": NetworkConfig(model="small-image"), "audio": NetworkConfig(model="small-audio")},
        multimodal=NetworkConfig(model="small-mm"),
        taps={"image": ("conv2", "fc1"), "audio": ("conv3", "fc1"), "mm": ("concat_identity", "fc1")},
        maps={
            "image": {"image": ("conv1", "conv2")},
            "audio": {"audio": ("conv1", "conv2", "conv3")},
            "mm": {"image": ("image_conv1", "image_conv2"), "audio": ("audio_conv1", "audio_conv2", "audio_conv3")},
        },
        activated={
            "image": activated("conv1", "conv2", "fc1"),
            "audio": activated("conv1", "conv2", "conv3", "fc1"),
            "mm": activated("image_conv1", "image_conv2", "audio_conv1", "audio_conv2", "audio_conv3", "fc1"),
        },
        batch_size=64,
        supervised=Length(epochs=10, learning_rate=2e-3),
        collaborate=Length(epochs=5, learning_rate=2e-3),
        specialise=Length(epochs=1, learning_rate=1e-4),
        distil=Length(epochs=10, learning_rate=2e-3),
        kd=kd_for(labelled),
        route=route_for(labelled),
    )


def av_digits(
    method: str,
    *,
    student: Literal["image", "audio"] = "image",
    teachers: Kind | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
) -> Recipe:
    """A method on `av-digits`; its tables report accuracy."""
    made = setup(labelled=labelled, seed=seed)
    return recipe(made, method, student=student, teachers=teachers, seed=seed, control=control)

"""The embedded data: small networks on handwritten and spoken digits, in seconds on a laptop.

crossdistill run av-digits/mst-distill --set student=audio --set labelled=0.05
"""

from typing import Literal

from crossdistill.data.av_digits import AvDigitsConfig
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes.kit import Kind, Kit, Length
from crossdistill.recipes.plans import recipe


def kit(*, labelled: float = 1.0, seed: int = 0) -> Kit:
    """Small siblings of the AV-MNIST networks. The split is fixed; `seed` draws weights, order and kept labels."""
    return Kit(
        data=AvDigitsConfig(labelled=labelled, label_seed=seed),
        networks={"image": NetworkConfig(model="small-image"), "audio": NetworkConfig(model="small-audio")},
        multimodal=NetworkConfig(model="small-mm"),
        taps={"image": ("conv2", "fc1"), "audio": ("conv3", "fc1"), "mm": ("concat_identity", "fc1")},
        batch_size=64,
        supervised=Length(epochs=12, learning_rate=2e-3),
        collaborate=Length(epochs=8, learning_rate=2e-3),
        specialise=Length(epochs=3, learning_rate=1e-3),
        distil=Length(epochs=10, learning_rate=2e-3),
    )


def av_digits(
    method: str,
    *,
    student: Literal["image", "audio"] = "image",
    teachers: Kind | None = None,
    labelled: float = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: int = 0,
) -> Recipe:
    """A method on `av-digits`; accuracy is what its tables report."""
    made = kit(labelled=labelled, seed=seed)
    return recipe(made, method, student=student, teachers=teachers, seed=seed, control=control)

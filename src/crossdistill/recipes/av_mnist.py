"""AV-MNIST at the published sizes (MST-Distill, Table 1); 100 epochs a stage, Adam 1e-4, batch 512.

    crossdistill run av-mnist/mst-distill --set data.root=FOLDER --set student=audio

Published accuracies (mean of five runs, split by sample): image student alone 0.6322, KD 0.6322, MST-Distill 0.6359;
audio student alone 0.4372, KD 0.4383, MST-Distill 0.4381.
"""

from typing import Literal

from crossdistill.data.av_mnist import AvMnistConfig
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes.kit import Kind, Kit, Length
from crossdistill.recipes.plans import recipe


def kit(*, labelled: float = 1.0, seed: int = 0) -> Kit:
    """LeNet5, ThreeLayerCNN-A and CNN-I; `seed` draws the split too, as the paper's does."""
    length = Length(epochs=100, learning_rate=1e-4)
    return Kit(
        data=AvMnistConfig(labelled=labelled, seed=seed),
        networks={"image": NetworkConfig(model="lenet5"), "audio": NetworkConfig(model="three-layer-cnn-a")},
        multimodal=NetworkConfig(model="cnn-i"),
        taps={"image": ("conv3", "fc1"), "audio": ("conv2", "conv3"), "mm": ("concat_identity", "fc1")},
        batch_size=512,
        supervised=length,
        collaborate=length,
        specialise=length,
        distil=length,
    )


def av_mnist(
    method: str,
    *,
    student: Literal["image", "audio"] = "image",
    teachers: Kind | None = None,
    labelled: float = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: int = 0,
) -> Recipe:
    """A method on `av-mnist`; `data.root` or CROSSDISTILL_DATA says where the data are."""
    made = kit(labelled=labelled, seed=seed)
    return recipe(made, method, student=student, teachers=teachers, seed=seed, control=control)

"""ImageNet and Tiny-ImageNet by mdistiller's recipes: 100 and 200 epochs of SGD, parts of pictures and flips.

    crossdistill run imagenet/kd --set data.root=FOLDER --set teachers.cnn.weights=resnet34.safetensors
    crossdistill run tiny-imagenet/dot --set data.root=FOLDER

ImageNet: 100 epochs, rate 0.2 for batches of 512 (CRD and ReviewKD: 0.1 for 256), divided by ten after 30, 60 and 90
epochs, weight decay 1e-4; resized parts of at least 8 % of the area. Tiny-ImageNet: 200 epochs, rate 0.2 for batches of
256, divided by ten after 60, 120 and 160, weight decay 5e-4; turned by up to 20 degrees. Momentum is 0.9.
"""

from collections.abc import Mapping
from typing import Any, Literal

from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.sets.imagenet import ImagenetConfig
from crossdistill.data.sets.tiny_imagenet import TinyImagenetConfig
from crossdistill.methods.kd import KD
from crossdistill.recipe import Recipe
from crossdistill.recipes.pictures import IMAGE, Teachers, named_only, pictures_setup, sgd
from crossdistill.recipes.setup import ExperimentSetup, Fraction, Kind, Seed
from crossdistill.recipes.stages import recipe

EPOCHS, MILESTONES = 100, (0.3, 0.6, 0.9)
STUDENT, TEACHER = "imagenet-resnet18", "imagenet-resnet34"
SMALL_BATCHES = ("crd", "reviewkd")
"""Methods with the smaller batch and rate."""
TINY_EPOCHS, TINY_MILESTONES = 200, (0.3, 0.6, 0.8)
TINY_STUDENT, TINY_TEACHER = "cifar-mobilenetv2", "cifar-resnet18"
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "crd": {"fixed": (1.0, 0.8), "negatives": 16384, "repeat": True},
    "rkd": {"fixed": (1.0, 1.0)},
    "dkd": {"beta": 0.5, "temperature": 1.0, "warm_up": 1},
    "reviewkd": {"warm_up": 1},
}
"""mdistiller's settings for ResNet34 and ResNet18."""


def imagenet_setup(
    *,
    student: str = STUDENT,
    teacher: str = TEACHER,
    teachers: Teachers | None = None,
    labelled: float = 1.0,
    seed: int = 0,
    epochs: int = EPOCHS,
    learning_rate: float = 0.2,
    batch_size: int = 512,
) -> ExperimentSetup:
    """ImageNet; KD as mdistiller has it there: T = 1, halves of the cross-entropy and the divergence."""
    views = Variations(inputs={IMAGE: Variation(resized_crop=0.08, flip=True)})
    length = sgd(epochs, learning_rate, 1e-4, MILESTONES)
    return pictures_setup(
        ImagenetConfig(labelled=labelled, label_seed=seed, augmentation=views),
        student=student,
        default=STUDENT,
        teacher=teacher,
        teachers=teachers or {},
        batch_size=batch_size,
        length=length,
        student_length=length,
        kd=KD(fixed=(0.5, 0.5), temperature=1.0),
        published=PUBLISHED,
    )


def tiny_imagenet_setup(
    *,
    student: str = TINY_STUDENT,
    teacher: str = TINY_TEACHER,
    teachers: Teachers | None = None,
    labelled: float = 1.0,
    seed: int = 0,
    epochs: int = TINY_EPOCHS,
    learning_rate: float = 0.2,
    batch_size: int = 256,
) -> ExperimentSetup:
    """Tiny-ImageNet, with the networks for small pictures, which read 64x64 too."""
    views = Variations(inputs={IMAGE: Variation(rotate=20.0, flip=True)})
    length = sgd(epochs, learning_rate, 5e-4, TINY_MILESTONES)
    return pictures_setup(
        TinyImagenetConfig(labelled=labelled, label_seed=seed, augmentation=views),
        student=student,
        default=TINY_STUDENT,
        teacher=teacher,
        teachers=teachers or {},
        batch_size=batch_size,
        length=length,
        student_length=length,
        kd=KD(fixed=(0.1, 0.9), temperature=4.0),
        published={name: PUBLISHED[name] for name in ("crd", "rkd")},
    )


def imagenet(
    method: str,
    *,
    student: str = STUDENT,
    teachers: Kind | Teachers | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
    epochs: int = EPOCHS,
    learning_rate: float | None = None,
    batch_size: int | None = None,
) -> Recipe:
    """A method on ImageNet; `student` and `teachers.cnn` are names of networks."""
    kind, named = named_only(teachers)
    small = method in SMALL_BATCHES
    made = imagenet_setup(
        student=student,
        teachers=named,
        labelled=labelled,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate or (0.1 if small else 0.2),
        batch_size=batch_size or (256 if small else 512),
    )
    return recipe(made, method, student=IMAGE, teachers=kind, seed=seed, control=control)


def tiny_imagenet(
    method: str,
    *,
    student: str = TINY_STUDENT,
    teachers: Kind | Teachers | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
    epochs: int = TINY_EPOCHS,
    learning_rate: float = 0.2,
    batch_size: int = 256,
) -> Recipe:
    """A method on Tiny-ImageNet; `student` and `teachers.cnn` are names of networks."""
    kind, named = named_only(teachers)
    made = tiny_imagenet_setup(
        student=student,
        teachers=named,
        labelled=labelled,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    return recipe(made, method, student=IMAGE, teachers=kind, seed=seed, control=control)

"""CIFAR-10 and CIFAR-100 by the recipe of RepDistiller and mdistiller: 240 epochs of SGD, batch 64, crops and flips.

    crossdistill run cifar100/kd --set data.root=FOLDER
    crossdistill run cifar100/dkd --set student=cifar-wrn-16-2 --set teachers.cnn=cifar-wrn-40-2
    crossdistill run cifar100/dkd --set pair=wrn-40-2-wrn-16-2 --set teachers.cnn=cifar-wrn-40-2:cifar_teachers.tar

The rate is 0.05 (0.01 for MobileNetV2 and ShuffleNet students), divided by ten after 150, 180 and 210 epochs; momentum
0.9, weight decay 5e-4 on all weights. Published numbers of this family are the best test accuracy of all epochs, after
training on all 50,000 pictures; here a tenth of them is the validation split, which selects the epoch, and the test
split is read once.
"""

from collections.abc import Mapping
from typing import Any, Literal

from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.sets.cifar import Cifar10Config, Cifar100Config
from crossdistill.methods.kd import KD
from crossdistill.models import MODELS
from crossdistill.recipe import Recipe
from crossdistill.recipes.cifar_pairs import find_pair
from crossdistill.recipes.pictures import IMAGE, Teachers, named_only, pictures_setup, sgd
from crossdistill.recipes.setup import ExperimentSetup, Fraction, Kind, Length, Seed
from crossdistill.recipes.stages import recipe

EPOCHS = 240
MILESTONES = (150 / 240, 180 / 240, 210 / 240)
LEARNING_RATE, SMALL_RATE = 0.05, 0.01
SMALL_RATE_FOR = ("mobilenet", "shuffle")
"""Parts of the names of students that train at the smaller rate."""
STUDENT, TEACHER = "cifar-resnet8x4", "cifar-resnet32x4"
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "crd": {"fixed": (1.0, 0.8), "negatives": 16384},
    "rkd": {"fixed": (1.0, 1.0)},
}
"""mdistiller's settings of methods, where they are not the defaults here."""


def augmentation() -> Variations:
    """Random crops of a margin of 4 black pixels, and flips, in new views in each epoch."""
    return Variations(inputs={IMAGE: Variation(crop=4, flip=True)})


def rate_for(student: str) -> float:
    """The published learning rate of a student."""
    # A network with weights, NAME:FILE: names of folders say nothing.
    own = student.partition(":")[0]
    name = own if own in MODELS else student
    return SMALL_RATE if any(part in name for part in SMALL_RATE_FOR) else LEARNING_RATE


def cifar10_setup(**settings: Any) -> ExperimentSetup:
    """CIFAR-10 with the settings of `setup`."""
    return setup("cifar10", **settings)


def cifar100_setup(**settings: Any) -> ExperimentSetup:
    """CIFAR-100 with the settings of `setup`."""
    return setup("cifar100", **settings)


def setup(
    data: Literal["cifar10", "cifar100"] = "cifar100",
    *,
    student: str = IMAGE,
    pair: str | None = None,
    teacher: str | None = None,
    teachers: Teachers | None = None,
    labelled: float = 1.0,
    seed: int = 0,
    epochs: int = EPOCHS,
    learning_rate: float | None = None,
    batch_size: int = 64,
) -> ExperimentSetup:
    """The published recipe; `epochs` scales the milestones, and `learning_rate` is that of the student.

    `pair` is one of `PAIRS`, whose networks are those that nothing else names. KD as mdistiller has it: T = 4, 0.1 of
    the cross-entropy and 0.9 of the divergence.
    """
    config = Cifar100Config if data == "cifar100" else Cifar10Config
    chosen = None if pair is None else find_pair(pair)
    default = STUDENT if chosen is None else chosen.student
    rate = learning_rate or rate_for(default if student == IMAGE else student)
    return pictures_setup(
        config(labelled=labelled, label_seed=seed, augmentation=augmentation()),
        student=student,
        default=default,
        teacher=teacher or (TEACHER if chosen is None else chosen.teacher),
        teachers=teachers or {},
        batch_size=batch_size,
        length=sgd(epochs, LEARNING_RATE, 5e-4, MILESTONES),
        student_length=sgd(epochs, rate, 5e-4, MILESTONES),
        kd=KD(fixed=(0.1, 0.9), temperature=4.0),
        published=PUBLISHED if chosen is None else {**PUBLISHED, "dkd": {"beta": chosen.beta}},
    )


def cifar10(
    method: str,
    *,
    student: str = IMAGE,
    pair: str | None = None,
    teachers: Kind | Teachers | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
    epochs: int = EPOCHS,
    learning_rate: float | None = None,
    batch_size: int = 64,
) -> Recipe:
    """A method on CIFAR-10; `student` and `teachers.cnn` are names of networks, `pair` is one of `PAIRS`."""
    kind, named = named_only(teachers)
    made = setup(
        "cifar10",
        student=student,
        pair=pair,
        teachers=named,
        labelled=labelled,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    return recipe(made, method, student=IMAGE, teachers=kind, seed=seed, control=control)


def cifar100(
    method: str,
    *,
    student: str = IMAGE,
    pair: str | None = None,
    teachers: Kind | Teachers | None = None,
    labelled: Fraction = 1.0,
    control: Literal["shuffled"] | None = None,
    seed: Seed = 0,
    epochs: int = EPOCHS,
    learning_rate: float | None = None,
    batch_size: int = 64,
) -> Recipe:
    """A method on CIFAR-100; `student` and `teachers.cnn` are names of networks, `pair` is one of `PAIRS`."""
    kind, named = named_only(teachers)
    made = setup(
        "cifar100",
        student=student,
        pair=pair,
        teachers=named,
        labelled=labelled,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
    )
    if pair is not None and method == "mlkd" and (epochs, learning_rate) == (EPOCHS, None):
        made = made.model_copy(update={"distil": mlkd_length(pair)})
    return recipe(made, method, student=IMAGE, teachers=kind, seed=seed, control=control)


def mlkd_length(pair: str) -> Length:
    """MLKD's own length for a pair: more epochs at a smaller rate, which falls after the same epochs as all others."""
    chosen = find_pair(pair)
    milestones = tuple(epoch / chosen.mlkd_epochs for epoch in (150, 180, 210))
    return sgd(chosen.mlkd_epochs, chosen.mlkd_rate, 5e-4, milestones)

"""A recipe with everything that a resume, or a second process, could lose."""

from dataclasses import replace
from typing import Any

from crossdistill import Dataset, OptimizerConfig, Recipe, Stage, Variation, Variations
from crossdistill.method import STUDENT
from crossdistill.methods import KD, Collaborate, Route, Specialise, Supervised
from crossdistill.recipe import Checkpoints
from crossdistill.testing import toy_dataset, toy_models
from crossdistill.weighting import GradNormConfig, PCGradConfig

MOMENTUM = OptimizerConfig(name="sgd", learning_rate=0.02, momentum=0.9, schedule="cosine")


def _recipe(*stages: Stage, data: Dataset, teachers: int, normalised: bool = False, **fields: Any) -> Recipe:
    # Not from `builders`: tests copy this file, and run it where nothing else of the tests can be imported.
    (name, student), *others = toy_models(data, teachers, normalised=normalised).items()
    return Recipe(data=data, student=student, student_name=name, teachers=dict(others), stages=stages, **fields)


def three_stages(seed: int = 0, epochs: int = 2, every: int = 2) -> Recipe:
    """All stages of MST-Distill on toy data in seeded views, with dropout, BatchNorm, momentum, schedules and learned
    weights.

    `every` so many steps there is a checkpoint.
    """
    variations = Variations(inputs={"first": Variation(noise=0.2), "second": Variation(gain=0.3)}, views=2)
    data = replace(toy_dataset(("first", "second"), rows=120, labelled=0.5), augmentation=variations)
    teachers = ("teacher-0", "teacher-1")
    return _recipe(
        Stage(
            method=Collaborate(),
            trains=(STUDENT, *teachers),
            epochs=epochs,
            batch_size=24,
            weighting=GradNormConfig(),
            optimizer=OptimizerConfig(learning_rate=0.01),
            clip_norm=1.0,
        ),
        Stage(
            method=Specialise(taps=dict.fromkeys(teachers, ("joint", "hidden"))),
            trains=(),
            epochs=epochs,
            batch_size=24,
            optimizer=OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.01),
        ),
        Stage(method=Route(k=2), epochs=epochs, batch_size=24, weighting=PCGradConfig(), optimizer=MOMENTUM),
        name="three stages",
        data=data,
        teachers=2,
        normalised=True,
        seed=seed,
        checkpoints=Checkpoints(steps=every),
    )


def averaged() -> Recipe:
    """A student with BatchNorm whose weights are averaged, under a warm-up and an optimizer of torch's."""
    optimizer = OptimizerConfig(
        name="NAdam",
        learning_rate=0.01,
        weight_decay=0.01,
        schedule="cosine",
        warm_up=0.5,
        no_decay_on_norms_and_biases=True,
        arguments={"betas": [0.9, 0.99]},
    )
    return _recipe(
        Stage(method=KD(), epochs=4, batch_size=24, optimizer=optimizer, ema=0.9),
        name="averaged",
        data=toy_dataset(("first", "second"), rows=100),
        teachers=1,
        normalised=True,
        checkpoints=Checkpoints(steps=2),
    )


def two_stages(seed: int = 0, epochs: int = 2, every: int = 1) -> Recipe:
    """A teacher that is trained, and a student that it teaches: the least in which stages follow each other."""
    return _recipe(
        Stage(method=Supervised(), learner="teacher-0", epochs=epochs, batch_size=24),
        Stage(method=KD(), epochs=epochs, batch_size=24),
        name="two stages",
        data=toy_dataset(("first", "second"), rows=60),
        teachers=1,
        seed=seed,
        checkpoints=Checkpoints(steps=every),
    )

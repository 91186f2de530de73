"""Recipes as a user would keep them in a file of his own; some of them faulty."""

from dataclasses import replace

import torch

from crossdistill import Dataset, Network, OptimizerConfig, Recipe, Stage
from crossdistill.testing import toy_dataset, toy_models

NOT_A_FUNCTION = 3


def live(epochs: int = 1) -> Recipe:
    """Own modules on own arrays, by knowledge distillation."""
    data = toy_dataset(("first", "second"), rows=120)
    student, teacher = toy_models(data, 1).items()
    return _recipe(data, student[1], {teacher[0]: teacher[1]}, epochs)


def holds_nan(row: int = 7) -> Recipe:
    """NaN in an array that it makes itself, refused when the data set is made."""
    data = toy_dataset(("first", "second"), rows=120)
    broken = {name: tensor.clone() for name, tensor in data.inputs.items()}
    broken["second"][row] = torch.nan
    mended = Dataset.from_arrays("mine", broken, data.targets)
    return _recipe(mended, *_members(mended))


def hides_nan(epochs: int = 3) -> Recipe:
    """NaN that came in behind the checks: training meets it in some batch."""
    data = toy_dataset(("first", "second"), rows=120)
    data.inputs["first"][int(data.splits["train"][5])] = torch.inf
    return _recipe(_unsampled(data), *_members(data), epochs)


def hides_nan_in_validation() -> Recipe:
    data = toy_dataset(("first", "second"), rows=120)
    data.inputs["first"][int(data.splits["validation"][3])] = torch.nan
    return _recipe(_unsampled(data), *_members(data))


def _unsampled(data: Dataset) -> Dataset:
    """Data that are not held against what they were made of, so that a change in place is met in training alone."""
    return replace(data, sample="")


def refuses_its_input() -> Recipe:
    """A student for vectors of 5 numbers, on data of 6."""
    data = toy_dataset(("first", "second"), rows=120)
    return _recipe(data, Network(torch.nn.Linear(5, 4), "first"), _members(data)[1])


def other_classes() -> Recipe:
    """A teacher of 7 classes for a student of 4."""
    data = toy_dataset(("first", "second"), rows=120)
    return _recipe(data, _members(data)[0], {"teacher": Network(torch.nn.Linear(6, 7), "first")})


def returns_none() -> None:
    """A forgotten return."""


def fails(width: int = 3) -> Recipe:
    return live(epochs=[1, 2][width])


def _members(data: Dataset) -> tuple[Network, dict[str, Network]]:
    student, *teachers = toy_models(data, 1).items()
    return student[1], dict(teachers)


def _recipe(data: Dataset, student: Network, teachers: dict[str, Network], epochs: int = 1) -> Recipe:
    # No momentum: the row that is not finite spoils the weights in its own step, and no other.
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.01)
    return Recipe(
        name="mine",
        data=data,
        student=student,
        teachers=teachers,
        stages=(Stage(method="kd", epochs=epochs, batch_size=12, optimizer=optimizer),),
    )

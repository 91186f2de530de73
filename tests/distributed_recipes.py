"""Recipes without BatchNorm and dropout, and with plain descent: two processes then equal one to rounding."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdistill import OptimizerConfig, Recipe, Stage, run
from crossdistill.method import STUDENT
from crossdistill.methods import KD, Collaborate, Route, Specialise, Supervised
from crossdistill.recipe import Checkpoints
from crossdistill.testing import toy_cast, toy_dataset

DESCENT = OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9)
ROWS = 105
"""63 train: with batches of 31 rows the last step has one row, so the second process has none."""

CASES: Mapping[str, Mapping[str, Any]] = {
    "supervised": {"method": "supervised"},
    "kd": {"method": "kd"},
    "collaborate": {"method": "collaborate"},
    "specialise": {"method": "specialise"},
    "route": {"method": "route"},
    "micro-batches": {"method": "kd", "parts": 3},
    "pcgrad": {"method": "kd", "weighting": "pcgrad"},
    "gradnorm": {"method": "route", "weighting": "gradnorm"},
    "uncertainty": {"method": "kd", "weighting": "uncertainty"},
    "loss-ratio": {"method": "route", "weighting": "loss-ratio"},
    "supervised-absent": {"method": "supervised", "absent": 0.5},
    "kd-absent": {"method": "kd", "absent": 0.5},
    "collaborate-absent": {"method": "collaborate", "absent": 0.5},
    "specialise-absent": {"method": "specialise", "absent": 0.5},
    "route-absent": {"method": "route", "absent": 0.5},
}


def recipe(
    method: str = "kd", weighting: str = "sum", absent: float = 0.0, epochs: int = 2, every: int = 2, parts: int = 1
) -> Recipe:
    """One method on toy data; in a fraction `absent` of the rows each modality is missing; `parts` micro-batches."""
    missing = {"first": absent, "second": absent}
    data = toy_dataset(("first", "second"), rows=ROWS, labelled=0.6, absent=missing)
    (name, student), *others = toy_cast(data, 2).items()
    teachers = dict(others)
    made: dict[str, dict[str, Any]] = {
        "supervised": {"method": Supervised()},
        "kd": {"method": KD()},
        "collaborate": {"method": Collaborate(), "trains": (STUDENT, *teachers)},
        "specialise": {"method": Specialise(taps=dict.fromkeys(teachers, ("joint",))), "trains": ()},
        "route": {"method": Route(k=1, routing="learned", gate_detached=False)},
    }
    stage = Stage.model_validate(
        {"epochs": epochs, "batch_size": 31, "optimizer": DESCENT, "weighting": weighting, "micro_batches": parts}
        | made[method]
    )
    return Recipe(
        name=method,
        data=data,
        student=student,
        student_name=name,
        teachers=teachers,
        stages=(stage,),
        checkpoints=Checkpoints(steps=every),
    )


if __name__ == "__main__":
    # All of them in the same processes: starting these takes longer than the runs.
    for case, given in CASES.items():
        run(recipe(**given), Path(sys.argv[1]) / case)

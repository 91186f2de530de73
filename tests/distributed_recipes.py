"""Recipes without dropout, and with plain descent: two processes then equal one to rounding."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from crossdistill import OptimizerConfig, Recipe, Stage, run
from crossdistill.method import STUDENT
from crossdistill.methods import KD, Collaborate, Hint, Route, Specialise, Supervised
from crossdistill.recipe import Checkpoints
from crossdistill.testing import toy_dataset, toy_map_models, toy_models
from crossdistill.testing.toy import TOY_MAPS

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
    # Batch norms see the rows of both processes; their second is without rows in some steps.
    "normed": {"method": "supervised", "normed": True},
    "normed-absent": {"method": "supervised", "absent": 0.5, "normed": True},
    "normed-collaborate": {"method": "collaborate", "absent": 0.5, "normed": True},
    "normed-hint": {"method": "hint", "absent": 0.5, "normed": True},
    "normed-pcgrad": {"method": "kd", "weighting": "pcgrad", "absent": 0.5, "normed": True},
    "averaged": {"method": "kd", "normed": True, "ema": 0.9},
    "maps": {"method": "specialise-maps", "maps": True},
    "maps-absent": {"method": "specialise-maps", "absent": 0.5, "maps": True},
    "longer": {"method": "route", "weighting": "loss-ratio", "epochs": 15, "every": 3},
}


def recipe(
    method: str = "kd",
    weighting: str = "sum",
    absent: float = 0.0,
    epochs: int = 2,
    every: int = 2,
    parts: int = 1,
    normed: bool = False,
    maps: bool = False,
    ema: float | None = None,
) -> Recipe:
    """One method on toy data; in a fraction `absent` of the rows each modality is missing; `parts` micro-batches."""
    missing = {"first": absent, "second": absent}
    names = ("first", "second")
    data = toy_dataset(
        {name: TOY_MAPS[name] for name in names} if maps else names, rows=ROWS, labelled=0.6, absent=missing
    )
    (name, student), *others = (toy_map_models(data, 2) if maps else toy_models(data, 2, normalised=normed)).items()
    for _, network in ((name, student), *others):
        if normed:
            # Each process draws its own dropout.
            network.module.drop = nn.Identity()
    teachers = dict(others)
    made: dict[str, dict[str, Any]] = {
        "supervised": {"method": Supervised()},
        "kd": {"method": KD()},
        "collaborate": {"method": Collaborate(), "trains": (STUDENT, *teachers)},
        "specialise": {"method": Specialise(taps=dict.fromkeys(teachers, ("joint",))), "trains": ()},
        "specialise-maps": {
            "method": Specialise(taps=dict.fromkeys(teachers, ("early", "late")), heads=1),
            "trains": (),
        },
        "hint": {"method": Hint()},
        "route": {"method": Route(k=1, routing="learned", gate_detached=False)},
    }
    stage = Stage.model_validate(
        {
            "epochs": epochs,
            "batch_size": 31,
            "optimizer": DESCENT,
            "weighting": weighting,
            "micro_batches": parts,
            "ema": ema,
        }
        | made[method]
        # Masks on maps move slowly here: the epochs' values are equal to rounding, and either could be the best.
        | ({"select": "last", "optimizer": DESCENT.model_copy(update={"learning_rate": 5.0})} if maps else {})
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


class Steps:
    """Asked after every step whether to stop; ends its process at one of them, as a kill from outside would."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count = fatal, 0

    def __call__(self) -> bool:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


if __name__ == "__main__":
    # FOLDER [CASE [STEP TO BE KILLED AT]]; all cases in the same processes: starting these takes longer than the runs.
    folder, *which = sys.argv[1:]
    steps = Steps(fatal=int((*which, 0, 0)[1]))
    for case in which[:1] or CASES:
        run(recipe(**CASES[case]), Path(folder) / case, resume=True, stop=steps)
    sys.stdout.write(f"{steps.count} steps\n")

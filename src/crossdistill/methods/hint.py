"""FitNets' first stage: regression of the teachers' layers from the student's (Romero et al., ICLR 2015)."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch, Task
from crossdistill.losses.squared_error import squared_error
from crossdistill.losses.task import EVERY_TASK
from crossdistill.method import STUDENT, DataSpec, Method, Progress, Step, module_key
from crossdistill.methods.feature_method import FeatureConfig, PairedFeatures, paired_features, signals_of
from crossdistill.methods.layer_choice import Pairs
from crossdistill.nets.regressor import regressor
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher


class Hint(FeatureConfig):
    """The sum over pairs of layers of the regressed feature's mean squared error; no labels are used.

    By default the middle and the last tap of each network. As in the paper, the regressors and all layers up to the
    hinted ones are trained; no other layer has a gradient. `trains=["student:conv2", ...]` trains only the hinted
    layers, as MST-Distill's released code does. The best epoch is that of the lowest hint loss.
    """

    name: Literal["hint"] = "hint"
    regressors: Literal["fitnets", "released"] = "fitnets"
    """"released": as in MST-Distill's code, vectors are regressed by one-dimensional convolutions of four weights."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Builds a regressor for each pair, sized by the features."""
        return _Hint(self, self.pairs("hints", student, teachers))


class _Hint(Method):
    tasks: ClassVar[frozenset[Task]] = EVERY_TASK
    judged_by_targets = False

    def __init__(self, config: Hint, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs
        self.regressors = nn.ModuleDict(
            {
                module_key(f"{name}:{number}"): regressor(
                    pair.mine, pair.theirs, released=config.regressors == "released"
                )
                for name, of_teacher in pairs.items()
                for number, pair in enumerate(of_teacher)
            }
        )

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        return signals_of(self.pairs)

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        hints = self._hints(batch, outputs, teachers)
        return Step({f"hint/{features.name}": features.term(rows) for features, rows in hints}, outputs)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        total, count = (
            torch.zeros(len(batch), device=batch.ids.device),
            torch.zeros(len(batch), device=batch.ids.device),
        )
        for features, errors in self._hints(batch, student(batch), teachers):
            rows = torch.arange(len(batch), device=batch.ids.device) if features.rows is None else features.rows
            total, count = total.index_add(0, rows, errors), count.index_add(0, rows, torch.ones_like(errors))
        # The mean over the teachers that have outputs for the row.
        return {STUDENT: (total / count)[count > 0]}

    def _hints(
        self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]
    ) -> Iterator[tuple[PairedFeatures, Tensor]]:
        """The paired features of each teacher, and the hint loss on their rows."""
        for features in paired_features(self.pairs, student, batch, teachers):
            errors = [
                squared_error(self.regressors[module_key(f"{features.name}:{number}")](mine), theirs)
                for number, (mine, theirs) in enumerate(features.pairs())
            ]
            yield features, torch.stack(errors).sum(0)

"""FitNets' first stage: chosen layers of the student, regressed, meet the teachers' (Romero et al., ICLR 2015)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.losses.squared_error import squared_error
from crossdistill.method import STUDENT, DataSpec, Method, Progress, Step, Term, module_key
from crossdistill.methods.feature_method import FeatureConfig, Pair, met
from crossdistill.nets.regressor import regressor
from crossdistill.outputs import Outputs, OutputSpec, Signal
from crossdistill.teacher import Teacher


class Hint(FeatureConfig):
    """The sum over pairs of layers of the regressed feature's mean squared error; no labels are read.

    By default the middle and the last tap of each network. Besides the regressors trains everything that the hinted
    layers depend on, as in the paper: a gradient reaches nothing else. `trains=["student:conv2", ...]` trains the
    hinted layers alone, as MST-Distill's released code does. The best epoch is that of the lowest hint loss.
    """

    name: Literal["hint"] = "hint"
    regressors: Literal["fitnets", "released"] = "fitnets"
    """"released" is MST-Distill's code, which regresses vectors by one-dimensional convolutions of four numbers."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """A regressor for each pair, sized by the features."""
        return _Hint(self, self.pairs("hints", student, teachers))


class _Hint(Method):
    judged_by_targets = False

    def __init__(self, config: Hint, pairs: Mapping[str, Sequence[Pair]]) -> None:
        super().__init__()
        self.pairs = {name: tuple(found) for name, found in pairs.items()}
        self.regressors = nn.ModuleDict(
            {
                module_key(f"{name}:{number}"): regressor(
                    pair.mine, pair.theirs, released=config.regressors == "released"
                )
                for name, found in pairs.items()
                for number, pair in enumerate(found)
            }
        )

    def needs(self) -> Mapping[str, frozenset[Signal]]:
        mine = {pair.student for found in self.pairs.values() for pair in found}
        theirs = {name: frozenset(pair.teacher for pair in found) for name, found in self.pairs.items()}
        return {STUDENT: frozenset(mine), **theirs}

    def forward(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher], progress: Progress) -> Step:
        outputs = student(batch)
        found = self._hints(batch, outputs, teachers)
        return Step({f"hint/{name}": Term(rows, 1 / len(found)) for name, (rows, _) in found.items()}, outputs)

    def validate(self, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]) -> Mapping[str, Tensor]:
        total, count = (
            torch.zeros(len(batch), device=batch.ids.device),
            torch.zeros(len(batch), device=batch.ids.device),
        )
        for errors, rows in self._hints(batch, student(batch), teachers).values():
            where = torch.arange(len(batch), device=batch.ids.device) if rows is None else rows
            total, count = total.index_add(0, where, errors), count.index_add(0, where, torch.ones_like(errors))
        # The mean over the teachers that saw the row.
        return {STUDENT: (total / count)[count > 0]}

    def _hints(
        self, batch: Batch, student: Outputs, teachers: Mapping[str, Teacher]
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The hint loss by teacher, on the rows that it and the student saw, and these rows."""
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, pairs in self.pairs.items():
            mine, theirs, rows = met(pairs, student, teachers[name](batch))
            errors = [
                squared_error(self.regressors[module_key(f"{name}:{number}")](own), other)
                for number, (own, other) in enumerate(zip(mine, theirs, strict=True))
            ]
            found[name] = torch.stack(errors).sum(0), rows
        return found

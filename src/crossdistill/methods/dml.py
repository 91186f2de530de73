"""Deep mutual learning: every member is trained on the predictions of the others (Zhang et al., CVPR 2018)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.method import DataSpec, Method, MethodConfig
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.logit_shapes import require_same_logits
from crossdistill.outputs import OutputSpec


class DML(MethodConfig):
    """`collaborate` with the gradient of each divergence stopped at the target side.

    MST-Distill's paper compares with DML but gives no settings; the defaults are those of its first stage, T = 4 with
    T². The original is `temperature=1`, `averaged=True`.
    """

    trains_teachers: ClassVar[bool] = True

    name: Literal["dml"] = "dml"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T²."""
    averaged: bool = False
    """Divide a member's divergences by the number of other members."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all members have logits over the same classes."""
        require_same_logits(self.name, student, teachers)
        joint = Collaborate(temperature=self.temperature, squared=self.squared, averaged=self.averaged, detach=True)
        return joint.build(student, teachers, data)

"""Deep mutual learning: all members train, and each learns from the others' predictions (Zhang et al., CVPR 2018)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from crossdistill.method import DataSpec, Method, MethodConfig
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.logit_method import require_same_logits
from crossdistill.outputs import OutputSpec


class DML(MethodConfig):
    """`collaborate` whose divergences stop at the side that teaches.

    MST-Distill's paper compares with it without saying how; the defaults are its own first stage's T = 4 with T². The
    original is `temperature=1`, `averaged=True`.
    """

    trains_teachers: ClassVar[bool] = True

    name: Literal["dml"] = "dml"
    temperature: float = Field(4.0, gt=0)
    """Dimensionless."""
    squared: bool = True
    """Multiply divergences by T²."""
    averaged: bool = False
    """Divide a member's divergences by the number of its peers."""

    def build(self, student: OutputSpec, teachers: Mapping[str, OutputSpec], data: DataSpec) -> Method:
        """Checks that all members have logits over the same classes."""
        require_same_logits(self.name, student, teachers)
        joint = Collaborate(temperature=self.temperature, squared=self.squared, averaged=self.averaged, detach=True)
        return joint.build(student, teachers, data)

"""Divergence between the labels' probabilities of teacher and student: distillation of multi-label predictions."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from crossdistill.errors import SettingError, ShapeError


def sigmoid_kl(
    student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], temperature: float, squared: bool = True
) -> Float[Tensor, " B"]:
    """T² · mean over labels of KL(Bernoulli(sigmoid(teacher / T)) ‖ Bernoulli(sigmoid(student / T))), in nats.

    Each label is a distribution of its own, present or absent: one-versus-all distillation (Yang et al., "Multi-Label
    Knowledge Distillation", ICCV 2023, arXiv 2308.06453, whose MLD term is this divergence). Nothing is detached here.

    Raises:
        SettingError: the temperature is not above zero.
        ShapeError: student and teacher differ in shape.
    """
    if not temperature > 0:
        raise SettingError(f"distillation: temperature is {temperature}, but a sigmoid needs one above 0")
    if student.shape != teacher.shape:
        raise ShapeError(
            f"distillation: the teacher's logits are {tuple(teacher.shape)} and the student's {tuple(student.shape)}; "
            "both need the same rows and labels"
        )
    exact = torch.promote_types(student.dtype, torch.float32)
    mine, theirs = student.to(exact) / temperature, teacher.to(exact) / temperature
    present = theirs.sigmoid()
    divergence = present * (functional.logsigmoid(theirs) - functional.logsigmoid(mine))
    divergence = divergence + (1 - present) * (functional.logsigmoid(-theirs) - functional.logsigmoid(-mine))
    rows = divergence.mean(1)
    return rows * temperature**2 if squared else rows

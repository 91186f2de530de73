"""Kullback-Leibler divergence between softened predictions, the base of the other distillation losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.errors import SettingError, ShapeError


def log_probabilities(logits: Float[Tensor, "B C *pixels"], temperature: float) -> Float[Tensor, "B C *pixels"]:
    """Log of softmax(logits / temperature) over the classes, in nats; half precision is converted to float32.

    Raises:
        SettingError: the temperature is not above zero.
    """
    if not temperature > 0:
        raise SettingError(f"distillation: temperature is {temperature}, but a softmax needs one above 0")
    exact = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(exact) / temperature, dim=1)


def kl_divergence(
    log_target: Float[Tensor, "B C *pixels"], log_prediction: Float[Tensor, "B C *pixels"]
) -> Float[Tensor, " B"]:
    """KL(target ‖ prediction) of two log-distributions over dimension 1, in nats; dense ones as the mean over pixels.

    Raises:
        ShapeError: the shapes differ (they are not broadcast).
    """
    if log_target.shape != log_prediction.shape:
        raise ShapeError(
            f"distillation: the teacher's logits are {tuple(log_target.shape)} and the student's "
            f"{tuple(log_prediction.shape)}; both need the same rows, classes and pixels"
        )
    divergence = (log_target.exp() * (log_target - log_prediction)).sum(dim=1)
    return divergence.flatten(1).mean(dim=1) if divergence.ndim > 1 else divergence


def distillation_kl(
    student: Float[Tensor, "B C *pixels"],
    teacher: Float[Tensor, "B C *pixels"],
    temperature: float,
    squared: bool = True,
) -> Float[Tensor, " B"]:
    """T² · KL(teacher ‖ student) on softmax(logits / T), in nats: Hinton et al. 2015, arXiv 1503.02531.

    Dense logits (B, C, H, W) give the mean over all pixels of a row. Nothing is detached here, since joint training
    needs both gradients; detach an argument to keep its side fixed.

    Args:
        student: logits of the prediction, the second argument of the divergence.
        teacher: logits of the target, the first argument.
        temperature: dimensionless, above 0; larger values flatten both distributions.
        squared: multiply by T², so that the size of the gradient does not depend on T. MST-Distill's paper has no
            T²; its released code has it, as does the default here.

    Raises:
        SettingError: the temperature is not above zero.
        ShapeError: student and teacher differ in shape.
    """
    divergence = kl_divergence(log_probabilities(teacher, temperature), log_probabilities(student, temperature))
    return divergence * temperature**2 if squared else divergence

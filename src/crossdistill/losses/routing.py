"""Routing: divergence from the teachers that a gate selects for each row (MST-Distill, stage 3).

Shapes: B rows, K teachers, k of them selected, C classes.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crossdistill.errors import SettingError, ShapeError
from crossdistill.losses.kl import kl_divergence, log_probabilities


def top_teachers(
    gate_logits: Float[Tensor, "B K"], k: int, available: Bool[Tensor, "B K"] | None = None
) -> Int64[Tensor, "B k"]:
    """Indices of the k teachers with the highest gate values in each row, in descending order; ties: lower index first.

    Args:
        gate_logits: gate values before or after the softmax (the order is the same).
        k: teachers per row, 1 to K.
        available: teachers with outputs for the row; the others come last. None: all teachers.

    Raises:
        SettingError: k is not between 1 and K.
    """
    teachers = gate_logits.shape[1]
    if not 1 <= k <= teachers:
        raise SettingError(f"routing: k is {k}, but there are {teachers} teachers; possible are 1 to {teachers}")
    values = gate_logits.detach()
    if available is not None:
        values = torch.where(available, values, -torch.inf)
    return values.sort(dim=1, descending=True, stable=True).indices[:, :k]


def picked_teachers(
    gate_logits: Float[Tensor, "B K"], k: int, available: Bool[Tensor, "B K"] | None = None
) -> Bool[Tensor, "B K"]:
    """Whether the gate selects a teacher for a row, among those with outputs for it: `top_teachers` as a mask.

    Raises:
        SettingError: k is not between 1 and K.
    """
    chosen = top_teachers(gate_logits, k, available)
    table = torch.zeros_like(gate_logits, dtype=torch.bool).scatter(1, chosen, value=True)
    return table if available is None else table & available


def routed_kl(
    student: Float[Tensor, "B C *pixels"],
    teachers: Float[Tensor, "K B C *pixels"],
    gate_logits: Float[Tensor, "B K"],
    k: int,
    temperature: float,
    *,
    reduce: Literal["sum", "mean"] = "sum",
    squared: bool = True,
    available: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """T² · KL(teacher ‖ student), summed over the k teachers selected for the row: MST-Distill, equation 14.

    The selection is hard, so the gate has no gradient from this loss; in `weighted_kl` it has one.

    Args:
        student: logits of the prediction.
        teachers: logits of the K teachers; detach them, nothing is detached here.
        gate_logits: one value for each row and teacher.
        k: teachers per row, 1 to K.
        temperature: dimensionless, above 0.
        reduce: "sum" over the k teachers as in the paper, or "mean" as in the released code.
        squared: multiply by T².
        available: teachers with outputs for the row; the others are not read (their logits may be NaN) and are left
            out of the sum and the mean. A row without any is 0.

    Raises:
        SettingError: `k`, `reduce` or the temperature is invalid.
        ShapeError: the teachers' logits do not fit the student's or the gate's.
    """
    if reduce not in ("sum", "mean"):
        raise SettingError(f"routing: reduce is {reduce!r}; possible are 'sum' and 'mean'")
    chosen = top_teachers(gate_logits, k, available)
    terms, counted = _chosen_kl(student, teachers, chosen, temperature, squared, available)
    total = terms.sum(dim=1)
    return total / counted.sum(dim=1).clamp(min=1) if reduce == "mean" else total


def weighted_kl(
    student: Float[Tensor, "B C *pixels"],
    teachers: Float[Tensor, "K B C *pixels"],
    gate_logits: Float[Tensor, "B K"],
    k: int,
    temperature: float,
    *,
    renormalise: bool = True,
    squared: bool = True,
    available: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """Σ gate probability · T² · KL(teacher ‖ student) over the k selected teachers: learned routing.

    Here the gate has the gradient of the distillation loss, which increases the probability of teachers with the
    smallest divergence from the student. Add a load balance, or one teacher may be selected for all rows. This form is
    not in MST-Distill, whose gate is trained by the load balance only.

    Args:
        student: logits of the prediction.
        teachers: logits of the K teachers; detach them, nothing is detached here.
        gate_logits: gate values before the softmax; do not detach them.
        k: teachers per row, 1 to K.
        temperature: dimensionless, above 0.
        renormalise: rescale probabilities to sum 1 over the selected teachers, so that the term has the size of one
            divergence; with False they are those of the softmax over all K.
        squared: multiply by T².
        available: teachers with outputs for the row; the others are not read and have weight 0. A row without any is 0.

    Raises:
        SettingError: `k` or the temperature is invalid; or k = 1 of several teachers with `renormalise`, where the
            weight is always 1 and the gate would have no gradient.
        ShapeError: the teachers' logits do not fit the student's or the gate's.
    """
    if k == 1 and renormalise and gate_logits.shape[1] > 1:
        raise SettingError(
            "learned routing: k is 1 and weights are renormalised, so the only weight is always 1 and the gate would "
            "learn nothing; take k of 2 or more, or renormalise=False"
        )
    chosen = top_teachers(gate_logits, k, available)
    terms, counted = _chosen_kl(student, teachers, chosen, temperature, squared, available)
    exact = gate_logits.to(torch.promote_types(gate_logits.dtype, torch.float32))
    if available is not None:
        # The smallest finite value, since -inf would give NaN in a row without any teacher.
        exact = torch.where(available, exact, torch.finfo(exact.dtype).min)
    log_weights = torch.log_softmax(exact, dim=1).gather(1, chosen)
    weights = torch.softmax(log_weights, dim=1) if renormalise else log_weights.exp()
    return torch.where(counted, weights * terms, 0.0).sum(dim=1)


def _chosen_kl(
    student: Tensor,
    teachers: Tensor,
    chosen: Tensor,
    temperature: float,
    squared: bool,
    available: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Divergences from the selected teachers (B, k), 0 for unavailable ones, and which are available (B, k)."""
    rows = len(chosen)
    if teachers.shape[1:] != student.shape or rows != len(student):
        raise ShapeError(
            f"routing: the teachers' logits are {tuple(teachers.shape)}, the student's {tuple(student.shape)} and the "
            f"gate has {rows} rows; teachers need the shape (K,) + the student's, the gate one row for each of its rows"
        )
    picked = teachers[chosen.T, torch.arange(rows, device=chosen.device)]
    counted = torch.ones_like(chosen, dtype=torch.bool) if available is None else available.gather(1, chosen)
    if available is not None:
        picked = torch.where(counted.T.reshape(*counted.T.shape, *[1] * (picked.ndim - 2)), picked, 0.0)
    log_student = log_probabilities(student, temperature)
    terms = torch.stack([kl_divergence(log_probabilities(row, temperature), log_student) for row in picked], dim=1)
    factor = temperature**2 if squared else 1.0
    return torch.where(counted, factor * terms, 0.0), counted

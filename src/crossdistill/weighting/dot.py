"""Two momenta: a larger one for the distillation gradient than for the task gradient (Zhao et al., DOT, ICCV 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from crossdistill.weighting.separate import Separate
from crossdistill.weighting.weighting import Turn, Weighting, WeightingConfig

TASK = "task"
"""The group with the smaller momentum; all other groups are distillation."""


class Dot(Separate):
    """Distillation-oriented training: velocities v_task and v_distil with momentum m - delta and m + delta.

    The optimizer's gradient is their sum, so it must be plain SGD without momentum and weight decay. `weight_decay` is
    added to the task's gradient (or to the only gradient of a parameter without a task gradient). For a parameter with
    only one of the two gradients, the momentum is m. In the first step the velocity is the gradient.
    """

    remembers: ClassVar[bool] = False

    def __init__(
        self, groups: Sequence[str] = (), momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups)
        self.momentum, self.delta, self.weight_decay = momentum, delta, weight_decay
        self._velocities: Tensor | None = None
        self._received: Tensor | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        # In a tuple, so that they are not registered as parameters of this module.
        self._parameters_now: tuple[Sequence[nn.Parameter]] = ((),)

    def backprop(self, totals: Mapping[str, Float[Tensor, ""]], parameters: Sequence[nn.Parameter], turn: Turn) -> None:
        """One backward pass for the task, one for the distillation groups."""
        self._parameters_now = (parameters,)
        teaching = [total for group, total in totals.items() if group != TASK]
        zero = torch.zeros((), device=parameters[0].device)
        pair = {TASK: totals.get(TASK, zero), "distil": torch.stack(teaching).sum() if teaching else zero}
        super().backprop(pair, parameters, turn)

    def combine(self, gradients: Float[Tensor, "G P"], losses: Float[Tensor, " G"], turn: Turn) -> Float[Tensor, " P"]:
        """v_task + v_distil; the velocities are updated in `after_step`."""
        (parameters,) = self._parameters_now
        sizes = torch.tensor([weight.numel() for weight in parameters], device=gradients.device)
        received = torch.stack([part.ne(0).any(1) for part in gradients.split(sizes.tolist(), 1)], 1)
        if self._received is not None:
            received = received | self._received.to(received.device)
        both = torch.repeat_interleave(received.all(0), sizes, output_size=gradients.shape[1])
        if self.weight_decay:
            flat = torch.cat([weight.detach().flatten() for weight in parameters]).to(gradients)
            task = torch.repeat_interleave(received[0] | ~received[1], sizes, output_size=gradients.shape[1])
            gradients = gradients + self.weight_decay * flat * torch.stack([task, ~task])
        signs = torch.tensor([[-1.0], [1.0]], device=gradients.device, dtype=gradients.dtype)
        momenta = self.momentum + self.delta * signs * both
        old = self._velocities
        new = gradients if old is None else momenta * old.to(gradients) + gradients
        self._pending = (new, received)
        return new.sum(0)

    def after_step(self) -> None:
        """Update the velocities."""
        if self._pending is not None:
            self._velocities, self._received = self._pending
            self._pending = None

    def get_extra_state(self) -> dict[str, Any]:
        """The velocities; their size is unknown before the first step."""
        return {"velocities": self._velocities, "received": self._received}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `get_extra_state`."""
        self._velocities, self._received = state["velocities"], state["received"]


class DotConfig(WeightingConfig):
    """Distillation-oriented training; the optimizer must be SGD with momentum 0 and weight decay 0."""

    makes: ClassVar[type[Weighting]] = Dot
    plain_sgd: ClassVar[bool] = True

    name: Literal["dot"] = "dot"
    momentum: float = Field(0.9, ge=0, lt=1, description="m, dimensionless")
    delta: float = Field(
        0.075, ge=0, lt=1, description="added to m for distillation, subtracted for the task; dimensionless"
    )
    weight_decay: float = Field(0.0, ge=0, description="of the task's gradient")

"""Optimizers and schedules of a stage: PyTorch's, and an Adam that updates very large weights in parts."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from crossdistill.autograd.factored import LARGE_BYTES, FactoredGradient
from crossdistill.autograd.mapped import PART_BYTES, MappedTensor, parts
from crossdistill.runtime.torch_optimizers import optimizer_classes, takes
from crossdistill.stage import OptimizerConfig

FUSED = ("cpu", "cuda")
"""Kinds of devices with fused optimizer kernels."""
MOMENTS = ("exp_avg", "exp_avg_sq")
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def optimizer_for(
    config: OptimizerConfig,
    groups: list[dict[str, Any]],
    *,
    graphed: bool = False,
    folder: Path | None = None,
    **sizes: int,
) -> torch.optim.Optimizer:
    """The optimizer of a stage; `folder` holds moments on disk (default: the system's temporary folder).

    `sizes` are the `large_bytes` and `part_bytes` of an Adam that updates large weights in parts.
    """
    # A stage without epochs, which only measures, may have no trained parameters.
    groups = groups or [{"params": []}]
    options = config.torch_arguments()
    if takes(config.name, "weight_decay"):
        options["weight_decay"] = config.weight_decay
    # Fused: one pass over the weights instead of a dozen; a loss scale can skip a step without a host sync.
    fused = all(p.is_floating_point() and p.device.type in FUSED for group in groups for p in group["params"])
    if config.name == "sgd":
        # Fused momentum fails for a weight whose first gradient comes later than those of others.
        options |= {"momentum": config.momentum, "fused": fused and not config.momentum}
    elif config.name in ("adam", "adamw"):
        options |= {"fused": fused, "capturable": graphed}
    if not config.in_parts:
        return optimizer_classes()[config.name](groups, lr=config.learning_rate, **options)
    kind = ChunkedAdamW if config.name == "adamw" else ChunkedAdam
    return kind(
        groups,
        config.learning_rate,
        folder=(folder or Path(tempfile.gettempdir())) if config.moments == "disk" else None,
        **sizes,
        **options,
    )


def decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters of a module with weight decay, and those without (norms, biases and vectors)."""
    left_out = {weight for layer in module.modules() if isinstance(layer, NORMS) for weight in layer.parameters()}
    for name, weight in module.named_parameters():
        if name.rpartition(".")[2] == "bias" or weight.ndim <= 1:
            left_out.add(weight)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    decayed = [weight for weight in trained if weight not in left_out]
    return decayed, [weight for weight in trained if weight in left_out]


def schedule_for(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, steps: int, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate schedule of a stage with `epochs` epochs of `steps` steps each."""
    if config.schedule == "cosine" and not config.warm_up:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps * epochs))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(config, step, steps, epochs))


def rate_factor(config: OptimizerConfig, step: int, steps: int, epochs: int) -> float:
    """The learning rate of a step (counted over the stage from 0), as a fraction of the full rate."""
    warm = round(config.warm_up * steps)
    if step < warm:
        # The first step has a rate above zero, and the first step after the warm-up has the full rate.
        return (step + 1) / (warm + 1)
    if config.schedule == "milestones":
        return config.gamma ** sum(step >= round(epoch * steps) for epoch in config.milestones)
    done = (step - warm) / max(1, steps * epochs - warm)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return max(0.0, 1 - done) if config.schedule == "linear" else 1.0


class InParts(torch.optim.Optimizer):
    """Base of Adam and AdamW that updates large weights in parts, with the same results as PyTorch's.

    Weights with factored gradients are updated in parts, so that the factors are multiplied for one part at a time;
    so are weights with moments in files, of which one part at a time is in memory.
    """

    _function: Callable[..., None]
    """Updates tensors from their gradients and moments."""

    def __init__(
        self,
        *arguments: Any,
        folder: Path | None = None,
        large_bytes: int | None = None,
        part_bytes: int = PART_BYTES,
        **options: Any,
    ) -> None:
        """Arguments of Adam or AdamW; with a `folder`, moments of weights of `large_bytes` are in files there."""
        super().__init__(*arguments, **options)
        self._folder = folder
        self._large_bytes = LARGE_BYTES if large_bytes is None else large_bytes
        self._part_bytes = part_bytes
        self._mapped: dict[Tensor, list[MappedTensor]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights that have a gradient."""
        large = [(weight, group) for group in self.param_groups for weight in group["params"] if self._apart(weight)]
        gradients = [weight.grad for weight, _ in large]
        for weight, group in large:
            self._move(weight, group)
            weight.grad = None
        result = super().step(closure)
        for (weight, _), gradient in zip(large, gradients, strict=True):
            weight.grad = gradient
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a result of `state_dict`, with moments of large weights in files."""
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            if self._on_disk(weight) and state:
                disk, size = self._disk(), self._part_bytes
                copies = {name: MappedTensor.copy(state[name], disk, few_bytes=0, part_bytes=size) for name in MOMENTS}
                self._place(weight, copies)

    def _apart(self, weight: Tensor) -> bool:
        return weight.grad is not None and (isinstance(weight.grad, FactoredGradient) or self._on_disk(weight))

    def _on_disk(self, weight: Tensor) -> bool:
        return self._folder is not None and weight.nbytes >= self._large_bytes

    def _disk(self) -> Path:
        assert self._folder is not None
        return self._folder

    def _begin(self, weight: Tensor) -> dict[str, Any]:
        """The state of a weight, which is made at its first gradient."""
        if not self.state[weight]:
            self.state[weight]["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            if self._on_disk(weight):
                self._place(weight, {name: MappedTensor.zeros(weight, self._disk()) for name in MOMENTS})
            else:
                self.state[weight] |= {name: torch.zeros_like(weight) for name in MOMENTS}
        state: dict[str, Any] = self.state[weight]
        return state

    def _place(self, weight: Tensor, mapped: dict[str, MappedTensor]) -> None:
        self._mapped[weight] = list(mapped.values())
        self.state[weight] |= {name: moment.tensor for name, moment in mapped.items()}

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self._begin(weight), weight.grad
        assert gradient is not None
        room = torch.empty(0)
        whole = gradient.width if isinstance(gradient, FactoredGradient) else 1
        for part in parts(weight, whole, part_bytes=self._part_bytes):
            if isinstance(gradient, FactoredGradient):
                room = weight.new_empty(weight[part].shape) if room.shape != weight[part].shape else room
                gradient_part = gradient.part(part, out=room)
            else:
                gradient_part = gradient[part]
            type(self)._function(
                [weight[part]],
                [gradient_part],
                [state[MOMENTS[0]][part]],
                [state[MOMENTS[1]][part]],
                [],
                # A copy, since the function increments the count for each part of this one step.
                [state["step"].clone()],
                fused=group["fused"],
                capturable=group["capturable"],
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for moment in self._mapped.get(weight, ()):
                moment.release()
        found_inf = getattr(self, "found_inf", None)
        state["step"] += 1 if found_inf is None else 1 - found_inf


class ChunkedAdam(InParts, torch.optim.Adam):
    """`torch.optim.Adam` with updates in parts."""

    _function = staticmethod(adam)


class ChunkedAdamW(InParts, torch.optim.AdamW):
    """`torch.optim.AdamW` with updates in parts; not an option of Adam, which has decoupled decay since torch 2.7."""

    _function = staticmethod(adamw)

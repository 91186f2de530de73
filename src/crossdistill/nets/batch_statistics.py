"""Layers whose output depends on the batch as a whole, and batch norms over the rows of all ranks.

Ioffe and Szegedy (ICML 2015): a batch norm in train mode normalises by the mean and variance of its batch. A part
of the batch (a micro-batch, a rank's rows) has different ones, and therefore other gradients and running statistics.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from crossdistill.batch import Batch, Input
from crossdistill.errors import RunError

Exchange = Callable[[Tensor], Tensor]
"""A function from the vector of this rank (n,) to the vectors of all ranks (ranks, n)."""

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OWN = re.compile(r"batch_?(re)?norm|(ghost|virtual|split)_?(b|norm)", re.IGNORECASE)
"""Class names of layers that are batch norms, or that normalise over parts of the batch."""
WRAPPERS = re.compile(r"(ghost|virtual|split)_?(b|norm)", re.IGNORECASE)


def batch_statistics(module: nn.Module, *, train: bool = True) -> dict[str, nn.Module]:
    """Layers of a module that compute or update batch statistics, by name, in train mode or in eval mode.

    These are torch's batch norms, instance norms that track running statistics, and layers of other classes that have
    `running_mean` and `running_var` or a batch norm's class name. In eval mode, these are only batch norms without
    running statistics. Layers that stay in eval mode when the module is set to train are not included.
    """
    if not train:
        return {
            name: layer
            for name, layer in module.named_modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is None
        }
    modes = {layer: layer.training for layer in module.modules()}
    module.train()
    try:
        return {name: layer for name, layer in module.named_modules() if layer.training and _of_batch(layer)}
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _of_batch(layer: nn.Module) -> bool:
    if isinstance(layer, _BatchNorm):
        return True
    if isinstance(layer, _InstanceNorm):
        return layer.track_running_stats
    name = type(layer).__name__
    inner = any(isinstance(part, _BatchNorm) for part in layer.modules())
    tracks = {"running_mean", "running_var"} <= set(dict(layer.named_buffers(recurse=False)))
    return tracks or bool((WRAPPERS if inner else OWN).search(name))


def can_join(layer: nn.Module) -> bool:
    """Whether the statistics of a layer can be computed over all ranks: it has torch's batch norm computation."""
    return (
        isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and any(type(layer).forward is plain.forward for plain in PLAIN)
    )


class JointStatistics:
    """Batch norms over the rows of all ranks, within a context; the modules are not changed.

    A forward pass exchanges one vector per norm: the rank's count, mean and sum of squared deviations. A backward pass
    exchanges the two sums of gradients that the norm needs. Every rank must run the same norms in the same order; a
    rank without rows uses `standing_in`.
    """

    def __init__(self, modules: Iterable[nn.Module], exchange: Exchange) -> None:
        layers = dict.fromkeys(layer for module in modules for layer in module.modules())
        norms = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.training and can_join(layer)]
        width = 2 + 2 * max((norm.num_features for norm in norms), default=0)
        self._forwards = {norm: _Forward(norm, number, width, exchange) for number, norm in enumerate(norms)}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A context in which the norms use the rows of all ranks."""
        try:
            for norm, forward in self._forwards.items():
                # An instance attribute takes precedence over the class's method.
                norm.__dict__["forward"] = forward
            yield
        finally:
            for norm in self._forwards:
                norm.__dict__.pop("forward", None)


def is_joint(module: nn.Module) -> bool:
    """Whether a batch norm in this module currently runs over all ranks."""
    return any(True for _ in _joint(module))


@contextmanager
def standing_in(module: nn.Module) -> Iterator[None]:
    """A context in which a module's joint norms count their rows as none and give them no gradient."""
    forwards = list(_joint(module))
    try:
        for forward in forwards:
            forward.muted = True
        yield
    finally:
        for forward in forwards:
            forward.muted = False


def one_row_like(batch: Batch, modalities: Iterable[str]) -> Batch:
    """One artificial row for `standing_in`: a ramp, whose variance is not zero; zeros in integer inputs."""

    def row(value: Tensor) -> Tensor:
        size = (1, *value.shape[1:])
        if not value.is_floating_point():
            return value.new_zeros(size)
        return torch.linspace(0, 1, torch.Size(size).numel(), dtype=value.dtype, device=value.device).view(size)

    inputs: dict[str, Input] = {}
    for name in modalities:
        value = batch.read(name)
        inputs[name] = row(value) if isinstance(value, Tensor) else {key: row(part) for key, part in value.items()}
    return Batch(inputs, batch.ids.new_zeros(1), total_rows=batch.total_rows)


def _joint(module: nn.Module) -> Iterator["_Forward"]:
    for layer in module.modules():
        forward = layer.__dict__.get("forward")
        if isinstance(forward, _Forward):
            yield forward


def _normalised(forward: "_Forward", value: Tensor) -> Tensor:
    norm = forward.norm
    if not norm.training:
        result: Tensor = type(norm).forward(norm, value)
        return result
    norm._check_input_dim(value)
    apply: Callable[..., Tensor] = _Joint.apply
    return apply(value, norm.weight, norm.bias, forward)


class _Forward:
    """The forward function of one norm over all ranks."""

    def __init__(self, norm: _BatchNorm, number: int, width: int, exchange: Exchange) -> None:
        self.norm = norm
        self.number = number
        self.width = width
        self.exchange = exchange
        self.muted = False
        # Not as a decorator: it imports PyTorch's compiler, which only runs of several processes with such norms need.
        self._uncompiled: Callable[[_Forward, Tensor], Tensor] = torch.compiler.disable(_normalised)

    def __call__(self, value: Tensor) -> Tensor:
        return self._uncompiled(self, value)

    def together(self, count: int, first: Tensor, second: Tensor, *, backward: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Counts (ranks, 1), and two vectors of channels of every rank (ranks, C).

        Raises:
            RunError: another rank runs a different norm.
        """
        channels = len(first)
        sent = torch.zeros(self.width, dtype=torch.float64, device=first.device)
        sent[0], sent[1] = 2 * self.number + backward, count
        sent[2 : 2 + channels], sent[2 + channels : 2 + 2 * channels] = first, second
        received = self.exchange(sent)
        # On an accelerator this check would need a synchronisation.
        if received.device.type == "cpu" and bool((received[:, 0] != received[0, 0]).any()):
            raise RunError(
                "the processes run the batch norms of one step in different orders, or not equally often "
                f"(at {type(self.norm).__name__}({self.norm.num_features})): the layers that a network runs depend on "
                "its rows; train it in one process"
            )
        return received[:, 1:2], received[:, 2 : 2 + channels], received[:, 2 + channels : 2 + 2 * channels]

    def track(self, mean: Tensor, squares: Tensor, total: Tensor) -> None:
        """Update the running statistics as torch does, with the unbiased variance."""
        norm, seen = self.norm, total > 0
        if norm.num_batches_tracked is not None and not self.muted:
            norm.num_batches_tracked.add_(1)
        elif norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(seen.squeeze().long())
        assert norm.running_mean is not None
        assert norm.running_var is not None
        share: Any = norm.momentum
        if share is None:
            assert norm.num_batches_tracked is not None
            share = 1.0 / norm.num_batches_tracked.clamp_min(1).double()
        variance = squares / (total - 1).clamp_min(1)
        for running, new in ((norm.running_mean, mean), (norm.running_var, variance)):
            moved = running.double() * (1 - share) + new * share
            running.copy_(torch.where(seen, moved, running.double()))


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor | None, bias: Tensor | None, layer: _Forward) -> Tensor:
        wide = value if value.dtype == torch.float64 else value.float()
        rows = 0 if layer.muted else value.numel() // value.shape[1]
        mean, squares = wide.new_zeros((2, value.shape[1]))
        if rows:
            mean = wide.mean(_others(value))
            squares = (wide - _shaped(mean, value)).square().sum(_others(value))
        counts, means, sums = layer.together(rows, mean, squares, backward=False)
        total = counts.sum(0)
        if total.device.type == "cpu" and int(total) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {value.shape}")
        joint_mean = (counts * means).sum(0) / total.clamp_min(1)
        joint_squares = (sums + counts * (means - joint_mean).square()).sum(0)
        layer.track(joint_mean, joint_squares, total)
        variance = joint_squares / total.clamp_min(1)
        scale = torch.rsqrt(variance + layer.norm.eps)
        ctx.layer, ctx.muted = layer, layer.muted
        ctx.save_for_backward(value, weight, joint_mean.to(wide), scale.to(wide), total)
        return functional.batch_norm(
            value, joint_mean.to(wide), variance.to(wide), weight, bias, False, 0.0, layer.norm.eps
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, weight, mean, scale, total = ctx.saved_tensors
        wide = value if value.dtype == torch.float64 else value.float()
        above, normal = gradient.to(wide), (wide - _shaped(mean, value)) * _shaped(scale, value)
        if ctx.muted:
            above, normal = torch.zeros_like(wide), torch.zeros_like(wide)
        to_bias, to_weight = above.sum(_others(value)), (above * normal).sum(_others(value))
        _, first, second = ctx.layer.together(0, to_bias, to_weight, backward=True)
        of_mean, of_scale = ((sums.sum(0) / total.clamp_min(1)).to(wide) for sums in (first, second))
        factor = scale if weight is None else scale * weight
        below = (above - _shaped(of_mean, value) - normal * _shaped(of_scale, value)) * _shaped(factor, value)
        if ctx.muted:
            below = torch.zeros_like(below)
        affine = weight is not None
        return (
            below.to(value.dtype) if ctx.needs_input_grad[0] else None,
            to_weight.to(weight.dtype) if affine and ctx.needs_input_grad[1] else None,
            to_bias.to(weight.dtype) if affine and ctx.needs_input_grad[2] else None,
            None,
        )


def _others(value: Tensor) -> list[int]:
    """All dimensions except that of the channels."""
    return [0, *range(2, value.ndim)]


def _shaped(channels: Tensor, value: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (value.ndim - 2))

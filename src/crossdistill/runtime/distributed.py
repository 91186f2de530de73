"""Devices and ranks: the only module that reads torchrun's variables and uses DDP and accelerators."""

import atexit
import inspect
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossdistill.errors import SettingError


class Devices:
    """The device of this process, and its communication with other ranks (one rank without torchrun)."""

    def __init__(self, device: torch.device, rank: int = 0, ranks: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.ranks = ranks
        self._gathering: dist.ProcessGroup | None = None
        self._exchanging: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """A DDP wrapper around all trained modules of a stage; the module itself if there is one rank."""
        if self.ranks == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # A part may get no rows on some rank (its modality is absent there), and then contributes a zero gradient.
        # `agree` synchronises buffers. torch 2.13 renamed the option that turns this off in each pass.
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        alone: dict[str, Any] = {name: False}
        return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True, **alone)

    def unsynced(self, module: nn.Module | None) -> AbstractContextManager[Any]:
        """A context in which backward passes do not synchronise gradients between ranks."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def add_up(self, value: Tensor) -> Tensor:
        """The sum over ranks, identical bit for bit on all ranks; sums in place."""
        if self.ranks > 1:
            dist.all_reduce(value)
        return value

    def agree(self, modules: Iterable[nn.Module]) -> None:
        """Copy the main rank's buffers to all ranks: batch norm statistics differ by rank, and one rank is saved."""
        if self.ranks > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, src=0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, with gradient: each rank's rows receive the gradients of the losses of all ranks."""
        if self.ranks == 1:
            return rows
        if self._gathering is None:
            # Separate from DDP's group, whose sums of gradients interleave in another order on each rank.
            self._gathering = dist.new_group()
        here = torch.tensor([len(rows), rows.requires_grad], device=self.device)
        everyone = [torch.zeros_like(here) for _ in range(self.ranks)]
        dist.all_gather(everyone, here, self._gathering)
        counts = [int(count) for count, _ in everyone]
        if any(bool(wanted) for _, wanted in everyone) and not rows.requires_grad and torch.is_grad_enabled():
            # The backward pass is a collective operation: ranks without gradient have to take part.
            rows = rows.detach().requires_grad_()
        apply: Callable[..., Tensor] = _Gathered.apply
        return apply(rows, counts, self.rank, self._gathering)

    def exchange(self, numbers: Tensor) -> Tensor:
        """The vectors of all ranks, by rank, without gradient: (ranks, n) from (n,)."""
        if self.ranks == 1:
            return numbers.unsqueeze(0)
        if self._exchanging is None:
            # Separate from DDP's group, as in `gather`.
            self._exchanging = dist.new_group()
        everyone = [torch.empty_like(numbers) for _ in range(self.ranks)]
        dist.all_gather(everyone, numbers, self._exchanging)
        return torch.stack(everyone)

    def same(self, value: str) -> str:
        """The main rank's text, on every rank."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def everyone(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        box = [value] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(box, value)
        return box

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.ranks > 1:
            dist.barrier()

    def random_state(self) -> dict[str, Any]:
        """The states of all random generators of all ranks."""
        states = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"ranks": self.everyone(states)}

    def restore_random_state(self, state: dict[str, Any]) -> None:
        """Restore a result of `random_state`."""
        states = state["ranks"][self.rank]
        torch.set_rng_state(states["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def reset_peak(self) -> None:
        """Reset the peak of memory, where the system allows it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        # Linux: writing 5 sets VmHWM back to what is resident now.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak_memory(self) -> float:
        """Peak memory since `reset_peak`, in MB: of the accelerator if there is one, otherwise resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        with suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
        # macOS reports bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class _Gathered(torch.autograd.Function):
    """Rows of all ranks, concatenated by rank; the backward pass sums their gradients over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int, group: Any) -> Tensor:
        padded = rows.new_zeros((max(1, *counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded, group)
        ctx.rows, ctx.group = slice(sum(counts[:rank]), sum(counts[: rank + 1])), group
        return torch.cat([piece[:count] for piece, count in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=ctx.group)
        return whole[ctx.rows], None, None, None


@contextmanager
def devices(wanted: str = "auto") -> Iterator[Devices]:
    """The device of this process; joins the other ranks if torchrun started several, until the process ends.

    Raises:
        SettingError: the device does not exist (lists those that do), or cannot be used.
    """
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    device = _device(wanted, int(os.environ.get("LOCAL_RANK", "0")))
    if ranks == 1:
        yield Devices(device)
        return
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # The group is made once: later runs of the same processes use it again.
        atexit.register(_leave)
    yield Devices(device, rank, ranks)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def kinds() -> list[str]:
    """The kinds of devices that torch finds here."""
    return ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()


def _device(wanted: str, local_rank: int) -> torch.device:
    known = kinds()
    kind, _, number = (("cuda" if "cuda" in known else "cpu") if wanted == "auto" else wanted).partition(":")
    if kind not in known:
        raise SettingError(
            f"device: wanted {wanted!r}, but torch {torch.__version__} finds {', '.join(known)} here{_why_not(kind)}"
        )
    try:
        index = (int(number) if number else local_rank) if kind == "cuda" else None
        count = torch.cuda.device_count() if kind == "cuda" else 0
        if index is not None and index >= count:
            raise SettingError(f"device: wanted cuda:{index}, found {count} CUDA devices, numbered from cuda:0")
        device = torch.device(kind) if index is None else torch.device(kind, index)
        if kind != "cpu":
            # A device that is found may still not work, if its driver is too old or missing.
            torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(
            f"device: {wanted!r} exists, but cannot be used: {' '.join(str(error).split())[:300]}; set device to cpu"
        ) from error
    return device


def _why_not(kind: str) -> str:
    """The reason why a device is missing, as far as torch reports it."""
    if kind == "cuda":
        built = torch.version.cuda is not None
        return "; it was built for CUDA, and finds no driver or device" if built else "; it was built without CUDA"
    built = torch.backends.mps.is_built()
    return "; it was built for MPS, and this machine has none" if built else "; it was built without MPS"

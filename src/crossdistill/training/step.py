"""Training step of one stage: trained parameters, train and eval modes, gradients and the optimizer."""

import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.autograd.factored import factored_gradients
from crossdistill.batch import Batch
from crossdistill.data.sampler import share_of
from crossdistill.data.workers import Request
from crossdistill.errors import SettingError
from crossdistill.method import Progress, Step, module_key
from crossdistill.nets.batch_statistics import JointStatistics
from crossdistill.network import Network
from crossdistill.planning.plan import Job
from crossdistill.planning.preflight import training_parts
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.precision import Precision
from crossdistill.stage import OptimizerConfig
from crossdistill.teacher import TeacherBase
from crossdistill.training.cuda_graphs import CudaGraphs, GraphedStep
from crossdistill.training.ema import Ema
from crossdistill.training.optimizer import InParts, decay_groups, optimizer_for, schedule_for


class _Together(nn.Module):
    """All trained modules of a stage as one module for DDP; its forward pass is a method's step."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({module_key(name): module for name, module in job.modules().items()})
        # In a tuple, so that frozen teachers are not submodules.
        self._job = (job,)

    def forward(self, batch: Batch, progress: Progress) -> Step:
        job = self._job[0]
        step: Step = job.method(batch, job.student, job.teachers, progress)
        # DDP expects a gradient for every weight that it reaches from the result. Only the terms may lead to weights,
        # since the student's outputs can depend on weights (such as those of an embedding) that no term uses.
        return _detached(step)


def _detached(step: Step) -> Step:
    """The step with the student's outputs detached."""
    return replace(step, student=step.student.detached())


class Training:
    """Parameters, optimizer and schedule of one stage; construction freezes all other modules and sets modes."""

    def __init__(self, job: Job, frozen: Iterable[nn.Module], devices: Devices, folder: Path | None = None) -> None:
        """`folder` holds the optimizer's moments that are kept on disk.

        Raises:
            SettingError: the stage uses CUDA graphs with several processes.
        """
        self.job = job
        self.devices = devices
        self.part_rows: int | None = None
        """Rows of one part of a validation pass; determined in the first pass."""
        stage = job.stage
        for module in frozen:
            module.requires_grad_(False).eval()
        for part in self._in_train_mode():
            part.requires_grad_(True).train()
        for network, _ in job.trained.values():
            for name in network.frozen:
                network.module.get_parameter(name).requires_grad_(False)
        if stage.cuda_graphs and devices.ranks > 1:
            raise SettingError(
                f"stage {stage.name!r}: cuda_graphs works in one process, and the run has {devices.ranks}; set it to "
                "false"
            )
        for network in self._networks():
            network.use_compiled(stage.compile)
        self.precision = Precision(stage.precision, devices.device, keeps_casts=not stage.cuda_graphs)
        self.weighting = stage.weighting.build(job.groups).to(devices.device)
        self.parameters = [
            p for module in (*job.modules().values(), self.weighting) for p in module.parameters() if p.requires_grad
        ]
        self.optimizer = optimizer_for(
            stage.optimizer, self._parameter_groups(stage.optimizer), graphed=stage.cuda_graphs, folder=folder
        )
        # Gradients stay in factors if one pass computes the whole gradient and the optimizer is the next to read it.
        self._factored = (
            isinstance(self.optimizer, InParts)
            and (devices.device.type, devices.ranks, stage.micro_batches) == ("cpu", 1, 1)
            and not self.precision.scales
            and not self.weighting.needs_separate
        )
        self.schedule = schedule_for(stage.optimizer, self.optimizer, job.order.steps, stage.epochs)
        self.ema = None if stage.ema is None else Ema(job.trained[job.student.name][0].module, stage.ema)
        self._joint = JointStatistics(self._in_train_mode(), devices.exchange) if devices.ranks > 1 else None
        self._together = devices.wrap(_Together(job)) if devices.ranks > 1 else None
        self._graphed = (
            GraphedStep(lambda batch, progress: self._update([batch], 1, len(batch), progress), CudaGraphs())
            if stage.cuda_graphs
            else None
        )

    def train_mode(self) -> None:
        """Set train mode after a validation pass."""
        for part in self._in_train_mode():
            part.train()

    def eval_mode(self) -> None:
        """Set eval mode for a validation pass."""
        for module in self.job.modules().values():
            module.eval()

    def batches(self, steps: Iterable[Tensor], epoch: int) -> Iterator[tuple[Tensor, Iterator[Batch]]]:
        """The rows of each step (of all ranks), with this process's micro-batches, which workers may read ahead."""
        job, order = self.job, self.job.order
        waiting: deque[tuple[Tensor, int]] = deque()

        def requests() -> Iterator[Request]:
            for rows in steps:
                parts = share_of(rows, self.devices.rank, self.devices.ranks, job.stage.micro_batches)
                waiting.append((rows, len(parts)))
                for part in parts:
                    yield Request(part, len(rows), job.reads, job.dataset.views(part, order.seed, epoch))

        stream = job.dataset.batches(requests(), self.devices.device)
        for first in stream:
            rows, parts = waiting.popleft()
            yield rows, map(self._with_domain_rows(rows), chain([first], islice(stream, parts - 1)))

    def _with_domain_rows(self, rows: Tensor) -> Callable[[Batch], Batch]:
        """A function that gives each part of a step the numbers of the step's rows by domain."""
        domain = self.job.dataset.domain
        if domain is None:
            return lambda batch: batch
        counts = Counter(domain[row] for row in rows.tolist())
        return lambda batch: replace(batch, domain_rows=counts)

    def step(self, rows: Tensor, progress: Progress, batches: Iterator[Batch] | None = None) -> dict[str, Tensor]:
        """One optimizer step on these rows (of all ranks); returns raw and weighted terms, without a host sync.

        `batches` are the micro-batches of this process, if they have been read already.
        """
        job, devices = self.job, self.devices
        if batches is None:
            batches = next(self.batches([rows], progress.epoch))[1]
        if self._graphed is not None:
            logs = self._graphed(next(batches), progress)
        else:
            parts = len(share_of(rows, devices.rank, devices.ranks, job.stage.micro_batches))
            logs = self._update(batches, parts, len(rows), progress)
        with warnings.catch_warnings():
            if self.precision.scales:
                # torch warns about the order of calls if the first step overflowed.
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            self.schedule.step()
        self.weighting.after_step()
        if self.ema is not None:
            self.ema.update()
        return logs

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context for validation, in which the learner has its averaged weights, as at the end of the stage."""
        if self.ema is None:
            yield
            return
        # Synchronise the buffers first: they are then exchanged for the main rank's average.
        self.agree()
        with self.ema.in_place():
            yield

    def agree(self) -> None:
        """Copy the main rank's buffers to every rank."""
        self.devices.agree([*self.job.modules().values(), *([] if self.ema is None else [self.ema])])

    def use_average(self) -> None:
        """Replace the learner's weights by their average at the end of the stage."""
        if self.ema is not None:
            self.agree()
            self.ema.exchange()

    def _update(self, batches: Iterable[Batch], parts: int, total: int, progress: Progress) -> dict[str, Tensor]:
        """Update the weights from the micro-batches of a step; returns its logged values."""
        job, devices = self.job, self.devices
        self.optimizer.zero_grad(set_to_none=True)
        logs: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            last = number + 1 == parts
            separate = self.weighting.needs_separate
            with devices.unsynced(self._together) if separate or not last else nullcontext():
                joint = nullcontext() if self._joint is None else self._joint.entered()
                with joint, self.precision.passes(), factored_gradients(self._factored):
                    if self._together is None:
                        step = _detached(job.method(batch, job.student, job.teachers, progress))
                    else:
                        step = self._together(batch, progress)
                self._backward(step, total, parts, progress, last, logs)
            job.method.after_step(batch, step)
        self._add_up(logs, [name for name in logs if name not in step.logs])
        for parameter in self.weighting.parameters():
            # The weighting is not part of the module that DDP wraps.
            if parameter.grad is not None:
                devices.add_up(parameter.grad).div_(devices.ranks)
        self.precision.unscale(self.optimizer)
        if job.stage.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters, job.stage.clip_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.precision.scales:
            logs["skipped"] = (~norm.isfinite()).float()
            norm = norm.where(norm.isfinite(), 0.0)
        logs["gradient_norm"] = norm
        self.precision.step(self.optimizer)
        return logs

    def _backward(
        self, step: Step, total: int, parts: int, progress: Progress, last: bool, logs: dict[str, Tensor]
    ) -> None:
        ranks = self.devices.ranks
        raw = {name: term.reduced(total, ranks * parts) for name, term in step.terms.items()}
        weighted = {name: value * step.terms[name].weight for name, value in raw.items()}
        groups = {name: term.group for name, term in step.terms.items()}
        separate = self.weighting.needs_separate
        shown = self.weighting.backward(
            weighted,
            groups,
            self.parameters,
            # DDP averages gradients over ranks, but they have to be summed.
            scale=self.precision.scaled if separate else (lambda value: self.precision.scaled(value) * ranks),
            reduce=self.devices.add_up if separate and ranks > 1 else None,
            step=progress.epoch * progress.steps + progress.step,
            last=last,
            fraction=1 / (ranks * parts),
        )
        for name, value in raw.items():
            _add(logs, f"raw/{name}", value.detach())
            _add(logs, f"weighted/{name}", shown[name])
        _add(logs, "loss", torch.stack([value.reshape(()) for value in shown.values()]).sum())
        for name, value in step.logs.items():
            logs[name] = value.detach()

    def _add_up(self, logs: dict[str, Tensor], names: Sequence[str]) -> None:
        """Sum logged values over ranks."""
        if self.devices.ranks > 1:
            whole = self.devices.add_up(torch.stack([logs[name].reshape(()) for name in names]))
            logs.update(zip(names, whole.unbind(), strict=True))

    def _in_train_mode(self) -> list[nn.Module]:
        """Trained modules: the method, and networks (or only some layers of a network that trains at taps)."""
        return [*training_parts(self.job.trained).values(), self.job.method]

    def _networks(self) -> list[Network]:
        """Networks of the student and the teachers of this stage, each once."""
        networks = [TeacherBase.of(source).network for source in (self.job.student, *self.job.teachers.values())]
        return list({id(network): network for network in networks if network is not None}.values())

    def _parameter_groups(self, config: OptimizerConfig) -> list[dict[str, Any]]:
        modules: dict[str, nn.Module] = {**self.job.modules(), "weighting": self.weighting}
        groups = []
        for name, module in modules.items():
            rate = config.rates.get(name, config.learning_rate)
            if config.no_decay_on_norms_and_biases:
                decayed, others = decay_groups(module)
                groups += [{"params": decayed, "lr": rate}, {"params": others, "lr": rate, "weight_decay": 0.0}]
            else:
                groups.append({"params": [p for p in module.parameters() if p.requires_grad], "lr": rate})
        return [group for group in groups if group["params"]]

    def state(self) -> dict[str, Any]:
        """The state besides module weights that a resumed stage needs."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            # Its measurements in this epoch are of each rank's own rows.
            "weighting": self.devices.everyone(self.weighting.state_dict()),
            "precision": self.precision.state(),
            **({} if self.ema is None else {"ema": self.ema.state()}),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a result of `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.weighting.load_state_dict(state["weighting"][self.devices.rank])
        self.precision.load_state(state["precision"])
        if self.ema is not None:
            self.ema.load_state(state["ema"])


def _add(logs: dict[str, Tensor], name: str, value: Tensor) -> None:
    logs[name] = logs[name] + value if name in logs else value

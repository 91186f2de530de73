"""A method as one module for any training loop: `distiller(inputs, targets)` returns the loss of a step."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossdistill.adapters import LOW
from crossdistill.batch import MISSING_TARGET, Batch, Input, Task
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError
from crossdistill.method import STUDENT, Method, MethodConfig, Progress, Step, module_key
from crossdistill.methods import method_config
from crossdistill.models.own_network import as_network, left_as_they_were
from crossdistill.network import Network
from crossdistill.outputs import Outputs, Signal
from crossdistill.planning.members import Member, Members, check_trains, modules_of, named_members
from crossdistill.planning.training_data import TrainingData
from crossdistill.runtime.distributed import Devices
from crossdistill.teacher import Live, Teacher

Inputs = Tensor | Mapping[str, Input] | Batch

PROBED_ROWS = 8
"""Rows of the first batch on which sizes are measured."""
LATE = 1_000_000
"""An epoch at which every decay and warm-up shows in the weights of the terms."""


class Distiller(nn.Module):
    """Student, teachers and a method in one module, for a training loop of your own.

    ```
    distiller = Distiller(student, teacher, KD(temperature=4.0))
    optimizer = torch.optim.AdamW(distiller.parameters())
    for inputs, targets in loader:
        distiller(inputs, targets).backward()
    ```

    `student` and `teachers` (one, a sequence, or a mapping by name) are modules, or a `Network` where a module reads
    one of several modalities, has taps, or needs adapters; a teacher may be any `Teacher`, as from `next_teachers`.
    `method` is a name, settings, or a mapping with `name`. The loss is the plain sum of the weighted terms.

    `parameters()` are those of the student, of what the method adds, and of teachers where the method trains them;
    `trains` names other members ("student", names of teachers). All others are frozen: without gradient, in eval mode
    also after `train()`, moved by `to()`, and not in `state_dict()`.

    Sizes are measured on `example` (inputs, or inputs, targets and domains), or else on the first batch. A method that
    adds parameters needs the example, because an optimizer is made before the first batch.

    A method that stores rows by sample id (crd) needs the training data: `data`, or `targets` of all training rows,
    or `rows`, their number; ids are then positions in them, and each call passes `ids=`. `task` is the kind of the
    targets, by default that of `data`, or classes. Where `torch.distributed` is
    initialised, gradients are assumed to be averaged over processes, as in DistributedDataParallel, and rows of all
    processes are compared with each other; with `distributed=False` each process computes by itself.

    Raises:
        SettingError: an argument that the method needs is missing; the message names it.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Members = (),
        method: str | Mapping[str, Any] | MethodConfig = "kd",
        *,
        trains: Sequence[str] | None = None,
        example: Any = None,
        data: Dataset | None = None,
        targets: Tensor | None = None,
        rows: int | None = None,
        task: Task | None = None,
        epochs: int = 1,
        distributed: bool = True,
    ) -> None:
        super().__init__()
        # Not `config`: transformers reads an attribute of that name.
        self.settings = method if isinstance(method, MethodConfig) else method_config(method)
        members = named_members(teachers)
        every = (STUDENT, *(members if self.settings.trains_teachers else ()))
        self.trains = every if trains is None else tuple(trains)
        check_trains(self.trains, {STUDENT: student, **members})
        self.method: Method | None = None
        self.terms: dict[str, Tensor] = {}
        """The weighted terms of the last call by name, detached; their sum is its loss."""
        self.outputs: Outputs | None = None
        """The student's outputs in the last call, detached."""
        self._given: dict[str, Member] = {STUDENT: student, **members}
        self._sources: dict[str, Teacher] = {}
        self._task: Task = task or ("classes" if data is None else data.task)
        self._data = TrainingData(self.settings.name, data, targets, rows, self._task)
        self._progress = Progress(epochs=epochs)
        self._distributed = distributed
        self._devices: Devices | None = None
        self._pending: tuple[Batch, Step] | None = None
        self._asked = self._measured = self._says_epoch = False
        self._changing = ""
        # nn.Module registers a module that is set as an attribute; object.__setattr__ bypasses this.
        module = student.module if isinstance(student, Network) else student
        if STUDENT in self.trains:
            self.student = module
        else:
            object.__setattr__(self, "student", module)
        trained = [name for name in members if name in self.trains]
        self.teachers = nn.ModuleDict({module_key(name): modules_of(members[name])[0] for name in trained})
        # In a tuple, so that they are not registered as submodules.
        self._frozen = tuple(
            part.requires_grad_(False).eval()
            for name, member in self._given.items()
            if name not in self.trains
            for part in modules_of(member)
        )
        if example is not None:
            self._build(self._of_pair(example))

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        epoch: int | None = None,
        labelled: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None,
        domain: Sequence[str] | None = None,
    ) -> Tensor:
        """The loss of one batch: a scalar, averaged over rows.

        `inputs` are a tensor (rows first) or a mapping by modality; a `Batch` has its own targets and ids. `targets`
        are class numbers, `MISSING_TARGET` (-100) in rows without one; None: no row has a target. `labelled` marks
        the rows whose target the student may use, `present` by modality the rows that have it. `domain` names the
        domain of each row, for methods whose teachers have domains (multi-distillation). `epoch` is as for
        `set_epoch`. State that the method updates after a step (queues, centres) changes at the next call, by
        `eval()`, or by `state_dict()`: the graph of this call still needs the old state.
        """
        if epoch is not None:
            self.set_epoch(epoch)
        batch = self._batch(inputs, targets, ids, labelled, present, domain)
        if self._data.ids_read and ids is None and not isinstance(inputs, Batch):
            raise SettingError(f"{self.settings.name} looks rows up by their sample ids: pass ids= with each batch")
        method = self._ready(batch)
        self.after_step()
        for module in self._frozen:
            if any(part.training for part in module.modules()):
                module.eval()
        learning = self.training and torch.is_grad_enabled()
        devices = self._ranks(batch.ids.device) if learning else Devices(batch.ids.device)
        if devices.ranks > 1:
            batch = replace(batch, total_rows=int(devices.add_up(torch.tensor(len(batch), device=batch.ids.device))))
            if batch.domain is not None:
                each = devices.everyone(dict(Counter(batch.domain)))
                batch = replace(batch, domain_rows=sum(map(Counter, each), Counter()))
        progress = replace(self._progress, gather=devices.gather)
        step: Step = method(batch, self._sources[STUDENT], self._teachers(), progress)
        if learning:
            number = progress.step + 1
            self._progress = replace(self._progress, step=number, steps=max(number + 1, progress.steps))
            self._pending = (batch, replace(step, terms={}, student=step.student.detached()))
            self._warn_without_epoch()
        return self._loss(step, batch, devices.ranks)

    def _loss(self, step: Step, batch: Batch, ranks: int) -> Tensor:
        terms: dict[str, Tensor] = {}
        with torch.autocast(batch.ids.device.type, enabled=False):
            for name, term in step.terms.items():
                whole = replace(term, value=term.value.float()) if term.value.dtype in LOW else term
                # DDP averages gradients over ranks; multiplied by the number of ranks, the average is the sum.
                terms[name] = (whole.reduced(batch.total_rows, ranks) * term.weight * ranks).reshape(())
            loss = torch.stack(list(terms.values())).sum()
        self.terms = {name: value.detach() for name, value in terms.items()}
        self.outputs = step.student.detached()
        return loss

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch, counted from 0: weights that decay or grow, and random draws, depend on it."""
        if epoch != self._progress.epoch:
            # Step numbers of epochs do not overlap: each epoch counts as long as the longest one so far.
            self._progress = replace(self._progress, epoch=epoch, step=0)
        self._says_epoch = True

    def _warn_without_epoch(self) -> None:
        if self._changing and not self._says_epoch:
            warnings.warn(
                f"{self.settings.name}: {self._changing} from epoch to epoch, and this loop does not say which epoch "
                "it is: call set_epoch(epoch) at the start of each, or choose constant weights",
                UserWarning,
                stacklevel=2,
            )
            self._changing = ""

    def after_step(self) -> None:
        """Update the method's state after a step, once `backward()` has run; otherwise the next call does it."""
        if self._pending is not None and self.method is not None:
            batch, step = self._pending
            self._pending = None
            self.method.after_step(batch, step)

    def measure(self, batches: Iterable[Any]) -> None:
        """The pass over the training data that some methods (ofd, salience) take before the first step.

        `batches` are `Batch`, inputs, or pairs of inputs and targets, as a `DataLoader` gives them, or triples with the
        domains of the rows.
        """
        batches = iter(batches)
        first = self._of_pair(next(batches))
        method = self._ready(first, measured=True)
        rest, was = (self._of_pair(item) for item in batches), self.training
        with left_as_they_were(member for member in self._given.values() if isinstance(member, Network)):
            self.eval()
            method.measure(chain([first], rest), self._sources[STUDENT], self._teachers())
        self.training = was
        method.train(was)
        self._measured = True

    def next_teachers(self) -> dict[str, Teacher]:
        """The teachers for a next stage, such as masked ones; another Distiller takes them as its teachers."""
        if self.method is None:
            raise SettingError(f"{self.settings.name}: its networks have no sizes yet; pass example=, or a first batch")
        return dict(self.method.next_teachers(self._teachers()))

    def train(self, mode: bool = True) -> "Distiller":
        """Set train or eval mode of everything that trains; a pending update of the method's state comes first."""
        self.after_step()
        super().train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of everything that trains, with the method's state after the last step."""
        self.after_step()
        return super().state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that train, as far as they exist already; see `example`."""
        self._asked = self._asked or self.method is None
        return super().named_parameters(*args, **kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Distiller":
        # PyTorch leaves this method without annotations.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module in self._frozen:
            module._apply(fn)
        for member in self._given.values():
            if isinstance(member, Network):
                # Its module has been converted already; this call clears its cached types.
                member._apply(lambda tensor: tensor)
        self._devices = None
        return self

    def _ready(self, batch: Batch, *, measured: bool = False) -> Method:
        """The method, built for networks of these sizes."""
        if self.method is None:
            self._build(batch)
        assert self.method is not None
        name, measures = self.settings.name, type(self.method).measure is not Method.measure
        if measures and not measured and not self._measured:
            raise SettingError(f"{name} measures the training data before its first step: call measure(batches) once")
        return self.method

    def _teachers(self) -> dict[str, Teacher]:
        return {name: source for name, source in self._sources.items() if name != STUDENT}

    def _of_pair(self, item: Any) -> Batch:
        """The batch of one item of a `DataLoader`: a `Batch`, inputs, with targets, and with ids or domains."""
        given: list[Any] = [*(item if isinstance(item, tuple | list) else (item,)), None, None]
        of_ids = given[2] is None or isinstance(given[2], Tensor)
        inputs, targets, third = given[0], given[1], given[2]
        return self._batch(inputs, targets, third if of_ids else None, domain=None if of_ids else third)

    def _batch(
        self,
        inputs: Inputs,
        targets: Tensor | None = None,
        ids: Tensor | None = None,
        labelled: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None,
        domain: Sequence[str] | None = None,
    ) -> Batch:
        device = next((weight.device for weight in self.student.parameters()), torch.device("cpu"))
        if isinstance(inputs, Batch):
            return inputs.to(device)
        by_name = inputs if isinstance(inputs, Mapping) else {self._modality(): inputs}
        first = next(iter(by_name.values()))
        rows = len(first if isinstance(first, Tensor) else next(iter(first.values())))
        if ids is not None:
            self._data.check(ids)
        return Batch(
            by_name,
            torch.arange(rows) if ids is None else ids,
            targets=torch.full((rows,), MISSING_TARGET) if targets is None else targets,
            labelled=labelled,
            present=present or {},
            domain=None if domain is None else list(domain),
            task=self._task,
        ).to(device)

    def _modality(self) -> str:
        """The name of an input that is one tensor: the only modality that is read."""
        named = (member.reads for member in self._given.values() if isinstance(member, Network))
        others = (member.modalities for member in self._given.values() if not isinstance(member, nn.Module))
        reads = {name for names in (*named, *others) for name in names}
        if len(reads) > 1:
            raise SettingError(
                f"inputs are one tensor, and networks read {', '.join(sorted(reads))}: pass a mapping by modality"
            )
        return next(iter(reads), "input")

    def _build(self, batch: Batch) -> None:
        """Measure the sizes of outputs, and build the method for them."""
        batch = batch.select(torch.arange(min(len(batch), PROBED_ROWS), device=batch.ids.device))
        batch = replace(batch, total_rows=len(batch))
        for name, member in self._given.items():
            if isinstance(member, nn.Module):
                self._given[name] = self._network(name, member, batch)
        networks = {name: member for name, member in self._given.items() if isinstance(member, Network)}
        with left_as_they_were(networks.values()):
            for network in networks.values():
                network.probe(batch)
                network.eval()
            method = self._fitted(networks, batch)
        self.method = method.train(self.training)

    def _fitted(self, networks: Mapping[str, Network], batch: Batch) -> Method:
        """The method for networks of these sizes, after one step in eval mode as a check."""
        others = {name: network for name, network in networks.items() if name != STUDENT}
        config, layers = self.settings.choose_layers(others, batch)
        others |= {name: others[name].showing(layers[name], batch) for name in layers}
        sources: dict[str, Teacher] = {
            name: Live(name, others[name], trained=name in self.trains) if isinstance(member, nn.Module) else member
            for name, member in self._given.items()
            if name != STUDENT
        }
        student = networks[STUDENT].spec
        assert student is not None
        data = self._data.spec((student.logits or (0,))[0])
        specs = {name: source.spec for name, source in sources.items()}
        method = config.build(student, specs, data).to(batch.ids.device)
        if self._asked and any(True for _ in method.state_dict()):
            raise SettingError(
                f"{self.settings.name} adds {', '.join(method.state_dict())}, and an optimizer or a wrapper was made "
                "before the first batch, without them: pass example=, a batch of inputs, when the Distiller is made"
            )
        signals = dict(method.needs())
        of_student = signals.pop(STUDENT, frozenset({Signal.LOGITS}))
        self._sources = {STUDENT: Live(STUDENT, networks[STUDENT], of_student, trained=STUDENT in self.trains)}
        self._sources |= {name: sources[name].select(wanted) for name, wanted in signals.items()}
        self._changing = _changing(method, batch, self._sources)
        return method

    def _network(self, name: str, member: nn.Module, batch: Batch) -> Network:
        try:
            network = as_network(member, [modality for modality in batch.inputs if "@" not in modality])
        except ValueError as error:
            raise SettingError(f"{name!r}: {error}") from error
        assert isinstance(network, Network)
        return network

    def _ranks(self, device: torch.device) -> Devices:
        """The rank of this process, and the number of ranks."""
        if self._devices is None:
            several = self._distributed and dist.is_available() and dist.is_initialized()
            ranks = dist.get_world_size() if several else 1
            self._devices = Devices(device, dist.get_rank() if several else 0, ranks)
        return self._devices


@torch.no_grad()
def _changing(method: Method, batch: Batch, sources: Mapping[str, Teacher]) -> str:
    """A description of term weights that depend on the epoch; its steps in eval mode also check shapes."""
    teachers = {name: source for name, source in sources.items() if name != STUDENT}
    method.eval()
    with torch.random.fork_rng(devices=[]):
        early, late = (
            method(batch, sources[STUDENT], teachers, Progress(epoch, 2 * LATE)).terms for epoch in (0, LATE)
        )
    weights = {name: (float(term.weight), float(late[name].weight)) for name, term in early.items() if name in late}
    return ", ".join(f"the weight of {name} goes from {a:g} to {b:g}" for name, (a, b) in weights.items() if a != b)

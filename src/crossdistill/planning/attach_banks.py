"""The banks of one stage: finds, estimates and fills them, and replaces networks by banks."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.adapters import LOW
from crossdistill.bank.bank import BLOCK_ROWS, Bank, BankKey, BankSettings
from crossdistill.bank.fill import Produced, estimate, fill
from crossdistill.bank.rows import BankRows
from crossdistill.bank.teacher import Banked
from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.data.row_source import costliest
from crossdistill.data.workers import Request
from crossdistill.errors import BankError, BankMissing
from crossdistill.outputs import Outputs, Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.planning.plan import Job
from crossdistill.planning.sources import BankChoice, banked_rows, explained, wanted_shape
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.hashing import fingerprint, key_hash
from crossdistill.runtime.progress import Display, counted
from crossdistill.teacher import Teacher, TeacherBase

PASS_ROWS = {"cpu": 16}
"""Most rows of one pass while a block is computed, by the kind of device (other devices: the whole block). The pass is
the memory peak of a stage that reads only banks, and more rows are not faster on a CPU. Large rows need fewer."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One banked output: its source without the shuffled control, the signal, and the key of the bank."""

    name: str
    teacher: TeacherBase
    want: Signal
    key: BankKey

    @property
    def label(self) -> str:
        return f"{self.name} {self.want}"


def attach_banks(
    job: Job, settings: BankSettings, folder: Path, devices: Devices, display: Display
) -> tuple[Job, float]:
    """The same stage with its banked outputs read from banks, and the seconds spent on filling them.

    Banks are opened in the folder of all banks, and their missing blocks are computed. The choices, and an estimate of
    size and time, are displayed first.

    Raises:
        BankError: a bank is damaged, or its outputs do not match its key.
        StorageError: the disk has no room for a bank.
    """
    for line in explained(job.choices):
        display.say(f"{job.stage.name}: {line}")
    chosen = [choice for choice in job.choices if choice.banked]
    if not chosen:
        return job, 0.0
    began = time.monotonic()
    members: dict[str, Teacher] = {job.student.name: job.student, **job.teachers}
    sources = {name: TeacherBase.of(member) for name, member in members.items()}
    rows = banked_rows(job.dataset)
    items = _items(sources, chosen, job.dataset, rows, devices.device)
    banks: dict[str, Bank] = {}
    for base, group in _by_network(items):
        produce = _Producer(base, group, job.dataset, devices.device)
        produce.read_from(_cuts(base, group, folder, rows))
        banks |= _filled(job.stage.name, group, produce, folder, rows, display)
    memory_left = settings.memory
    for item in sorted(items, key=lambda item: (item.key.bytes(len(rows)), item.label)):
        memory_left -= item.key.bytes(len(rows))
        if memory_left >= 0:
            banks[item.label].hold(devices.device)
    banked = {
        name: _banked(sources[name], {item.want: banks[item.label] for item in items if item.name == name}, job.choices)
        for name in {item.name for item in items}
    }
    devices.wait()
    attached = {**members, **banked}
    supplied = replace(
        job,
        student=attached[job.student.name],
        teachers={name: attached[name] for name in job.teachers},
        reads=frozenset(name for source in {**sources, **banked}.values() for name in source.inputs_needed),
    )
    return supplied, time.monotonic() - began


def _banked(source: TeacherBase, banks: Mapping[Signal, Bank], choices: Sequence[BankChoice]) -> TeacherBase:
    """The source with these outputs read from banks, under its shuffled control if there is one."""
    signals = [_signal(choice) for choice in choices if choice.source == source.name]
    return source.reshuffle(Banked(source.unshuffled, banks, signals))


def _signal(choice: BankChoice) -> Signal:
    return Signal(*choice.want.split(":", 1))


def _items(
    sources: Mapping[str, TeacherBase],
    chosen: Sequence[BankChoice],
    dataset: Dataset,
    rows: BankRows,
    device: torch.device,
) -> list[_Item]:
    views = None if dataset.augmentation is None else dataset.augmentation.key
    weights: dict[str, str] = {}
    items = []
    for choice in chosen:
        teacher = sources[choice.source].unshuffled
        if choice.source not in weights:
            weights[choice.source] = identity(teacher)
        signal = _signal(choice)
        key = BankKey(
            weights=weights[choice.source],
            data=dataset.fingerprint,
            rows=rows.key,
            transform=views or "none",
            views=rows.views - 1,
            want=choice.want,
            shape=wanted_shape(teacher.spec, signal, teacher.name),
            gives=_type(teacher),
            dtype=choice.dtype,
            computed=f"torch {torch.__version__}, {device.type}{_format(teacher)}",
        )
        items.append(_Item(choice.source, teacher, signal, key))
    return items


def identity(teacher: TeacherBase) -> str:
    """A hash of everything that a frozen teacher's outputs depend on, except the data.

    Raises:
        BankError: the teacher has no `wiring`.
    """
    wiring = teacher.wiring()
    if wiring is None:
        raise BankError(f"{teacher.name!r} has no key that distinguishes its outputs, so they cannot be banked")
    return key_hash([wiring, [fingerprint(module) for module in teacher.modules()]])


def _type(teacher: TeacherBase) -> str:
    """The dtype of its outputs: that of its first weight; float32 for lower precision, which networks convert."""
    weights = (p for module in teacher.modules() for p in module.parameters() if p.is_floating_point())
    first = next(weights, None)
    return "float32" if first is None or first.dtype in LOW else str(first.dtype).removeprefix("torch.")


def _format(teacher: TeacherBase) -> str:
    """The memory format; it is in the key because channels-last convolutions round differently."""
    weights = (p for module in teacher.modules() for p in module.parameters() if p.ndim == 4)
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)
    return ", channels last" if last else ""


def _by_network(items: Sequence[_Item]) -> list[tuple[TeacherBase, list[_Item]]]:
    """The items grouped by network, each group with the teacher that computes their shared part."""
    groups: dict[int, tuple[TeacherBase, list[_Item]]] = {}
    for item in items:
        base = item.teacher.base
        shared = id(base) if base.network is None else id(base.network)
        groups.setdefault(shared, (base, []))[1].append(item)
    return list(groups.values())


class _Producer:
    """Computes the outputs of all sources of one network for a block of samples; the shared part runs once."""

    def __init__(self, base: TeacherBase, items: Sequence[_Item], dataset: Dataset, device: torch.device) -> None:
        self._items = items
        self._dataset = dataset
        self._device = device
        self._signals = {item.want for item in items if item.teacher.base is item.teacher}
        self._signals |= {Signal.cut(tap) for tap in _masked_taps(items)}
        self._base = base.select(self._signals) if self._signals else None
        self._reads = {modality for item in items for modality in item.teacher.modalities}
        self._rows = BLOCK_ROWS

    def read_from(self, cuts: Mapping[Signal, Bank]) -> None:
        """Read the cuts from complete banks, which hold the same numbers for each block."""
        if cuts and self._base is not None:
            banked = Banked(self._base, cuts, self._signals)
            alone = {m for item in self._items if self._runs_alone(item.teacher) for m in item.teacher.modalities}
            self._base, self._reads = banked, alone | set(banked.inputs_needed)

    @torch.no_grad()
    def __call__(self, ids: Tensor, view: Tensor | None) -> Produced:
        size = min(self._rows, PASS_ROWS.get(self._device.type, len(ids)))
        starts = range(0, len(ids), size)
        requests = (
            Request(ids[s : s + size], only=self._reads, view=None if view is None else view[s : s + size])
            for s in starts
        )
        parts = [self._of_batch(batch) for batch in self._dataset.batches(requests, self._device)]
        if len(parts) == 1:
            return parts[0]
        return {
            label: (
                torch.cat([part[label][0] for part in parts]),
                _joined([part[label][1] for part in parts], starts, len(ids)),
            )
            for label in parts[0]
        }

    def measure(self, rows: BankRows) -> None:
        """Determine the number of rows of one pass; it is equal in every process that fills these banks."""

        def few(number: int) -> Batch:
            ids, view = rows.part(0, len(rows))
            places = costliest(self._dataset.inputs, ids, number)
            part = None if view is None else view[places]
            return self._dataset.batch(ids[places], only=self._reads, view=part).to(self._device)

        self._rows = rows_at_once(self._of_batch, few, min(len(rows), BLOCK_ROWS), self._device)

    def _of_batch(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        """By label: the values, and their rows in the batch (None: all rows)."""
        shared = None if self._base is None else self._base(batch)
        by_source: dict[str, Outputs] = {}
        produced: dict[str, tuple[Tensor, Tensor | None]] = {}
        for item in self._items:
            if item.name not in by_source:
                teacher = item.teacher
                alone = self._runs_alone(teacher)
                by_source[item.name] = teacher(batch) if shared is None or alone else teacher.continued(shared)
            outputs = by_source[item.name]
            if outputs.lengths:
                raise BankError(f"{item.label}: its rows have different lengths; a bank stores rows of one shape")
            produced[item.label] = outputs.need(item.want), outputs.rows
        return produced

    @staticmethod
    def _runs_alone(teacher: TeacherBase) -> bool:
        """Whether it needs a separate pass: a pass with several masks cannot be continued from a single cut."""
        return teacher.base is not teacher and teacher.masked_tap is None


def _joined(rows: Sequence[Tensor | None], starts: range, total: int) -> Tensor | None:
    """The rows of a block that have outputs, from those of its parts; None: all rows."""
    if all(part is None for part in rows):
        return None
    ends = [*starts[1:], total]
    spans = zip(rows, starts, ends, strict=True)
    return torch.cat([torch.arange(s, e) if part is None else part.cpu() + s for part, s, e in spans])


def _masked_taps(items: Sequence[_Item]) -> set[str]:
    """The taps of the shared network from whose cuts masked teachers are continued."""
    return {item.teacher.masked_tap for item in items if item.teacher.masked_tap is not None}


def _about(item: _Item, stage: str) -> dict[str, Any]:
    """The description of a bank, which is no part of its key."""
    network = item.teacher.base.network
    licence = None if network is None or network.licence is None else asdict(network.licence)
    return {"source": item.name, "stage": stage, **({} if licence is None else {"licence": licence})}


def _cuts(base: TeacherBase, items: Sequence[_Item], folder: Path, rows: BankRows) -> dict[Signal, Bank]:
    """Complete banks of the base's cuts from an earlier stage, in the base's dtype: half precision is not exact."""
    taps = _masked_taps(items)
    if not taps or base.network is None:
        return {}
    weights, gives = identity(base), _type(base)
    cuts: dict[Signal, Bank] = {}
    for signal in map(Signal.cut, sorted(taps)):
        shape = wanted_shape(base.spec, signal, base.name)
        key = replace(items[0].key, weights=weights, want=str(signal), shape=shape, gives=gives, dtype=gives)
        try:
            bank = Bank.open(folder / key.folder, key, rows)
        except BankMissing:
            continue
        if not bank.missing():
            cuts[signal] = bank
    return cuts


def _filled(
    stage: str,
    items: Sequence[_Item],
    produce: _Producer,
    folder: Path,
    rows: BankRows,
    display: Display,
) -> dict[str, Bank]:
    """The complete banks of one network; size and time are displayed before anything is written."""
    banks, lacking = dict[str, Bank](), dict[str, int]()
    for item in items:
        try:
            banks[item.label] = Bank.open(folder / item.key.folder, item.key, rows)
            lacking[item.label] = len(banks[item.label].missing())
        except BankMissing:
            lacking[item.label] = -(-len(rows) // BLOCK_ROWS)
    missing = max(lacking.values())
    if missing == 0:
        return banks
    for module in (module for item in items for module in item.teacher.modules()):
        module.eval()
    produce.measure(rows)
    size = sum(item.key.bytes(len(rows)) for item in items if item.label not in banks)
    names = ", ".join(item.label for item in items if lacking[item.label])
    display.say(f"{stage}: bank of {names}: {estimate(rows, size, missing, BLOCK_ROWS, produce).text()}, in {folder}")
    for item in items:
        if item.label not in banks:
            banks[item.label] = Bank.create(folder, item.key, rows, _about(item, stage))
    display.begin(f"{stage}: bank", missing)
    fill(banks, produce, display.advance, lambda text: display.say(f"{stage}: {text}"))
    display.end(f"{counted(missing, 'block')} of {BLOCK_ROWS} rows")
    return banks

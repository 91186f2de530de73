"""The banks of one stage: found, estimated, filled, and put in the place of the networks that they stand for."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from crossdistill.adapters import LOW
from crossdistill.bank.bank import BLOCK_ROWS, Bank, BankKey, BankSettings
from crossdistill.bank.fill import Produced, estimate, fill
from crossdistill.bank.rows import BankRows
from crossdistill.bank.teacher import Banked, shuffled
from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.errors import BankError, BankMissing
from crossdistill.outputs import Outputs, Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.planning.plan import Job
from crossdistill.planning.sources import BankChoice, banked_rows, explained, wanted_shape
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.hashing import fingerprint, key_hash
from crossdistill.runtime.progress import Display, counted
from crossdistill.teacher import Keyed, Live, Masked, Shuffled, Teacher

PASS_ROWS = {"cpu": 16}
"""Rows of one pass while a block is computed, at most, by the kind of device (elsewhere all of them): it is the peak of
memory of a stage that reads nothing but banks, and a CPU is no faster with more. Fewer where rows hold much."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One output that is to be banked: of whom, which, under which key."""

    name: str
    teacher: Teacher
    want: Signal
    key: BankKey

    @property
    def label(self) -> str:
        return f"{self.name} {self.want}"


def supply(job: Job, settings: BankSettings, folder: Path, devices: Devices, display: Display) -> tuple[Job, float]:
    """The same stage with banks in the place of what its choices bank, and the seconds that this took.

    Banks are opened in the folder of all banks, and what is missing in them is filled; choices and estimates are said.

    Raises:
        BankError: a bank is damaged or of something else.
        StorageError: there is no room for one.
    """
    for line in explained(job.choices):
        display.say(f"{job.stage.name}: {line}")
    chosen = [choice for choice in job.choices if choice.banked]
    if not chosen:
        return job, 0.0
    began = time.monotonic()
    everyone = {job.student.name: job.student, **job.teachers}
    rows = banked_rows(job.dataset)
    items = _items(everyone, chosen, job.dataset, rows, devices.device)
    banks: dict[str, Bank] = {}
    for base, group in _by_network(items):
        produce = _Producer(base, group, job.dataset, devices.device)
        produce.read_from(_cuts(base, group, folder, rows))
        banks |= _filled(job.stage.name, group, produce, folder, rows, display)
    held = settings.memory
    for item in sorted(items, key=lambda item: (item.key.bytes(len(rows)), item.label)):
        held -= item.key.bytes(len(rows))
        if held >= 0:
            banks[item.label].hold(devices.device)
    found = {
        name: _in_place(teacher, {i.want: banks[i.label] for i in items if i.name == name}, job.choices)
        for name, teacher in everyone.items()
    }
    devices.wait()
    supplied = replace(
        job,
        student=found[job.student.name],
        teachers={name: found[name] for name in job.teachers},
        reads=frozenset(modality for teacher in found.values() for modality in reads_of(teacher)),
    )
    return supplied, time.monotonic() - began


def _in_place(teacher: Teacher, banks: Mapping[Signal, Bank], choices: Sequence[BankChoice]) -> Teacher:
    if not banks:
        return teacher
    signals = [_signal(choice) for choice in choices if choice.source == teacher.name]
    if isinstance(teacher, Shuffled):
        return shuffled(Banked(teacher.base, banks, signals), teacher.partner, teacher.fetch)
    return Banked(teacher, banks, signals)


def _signal(choice: BankChoice) -> Signal:
    return Signal(*choice.want.split(":", 1))


def reads_of(teacher: Teacher) -> tuple[str, ...]:
    """Modalities that a batch has to bring for this source; the control fetches its own rows."""
    if isinstance(teacher, Shuffled):
        return ()
    return teacher.reads if isinstance(teacher, Banked) else teacher.modalities


def _items(
    everyone: Mapping[str, Teacher],
    chosen: Sequence[BankChoice],
    dataset: Dataset,
    rows: BankRows,
    device: torch.device,
) -> list[_Item]:
    views = None if dataset.augmentation is None else dataset.augmentation.key
    weights: dict[str, str] = {}
    items = []
    for choice in chosen:
        teacher = everyone[choice.source]
        teacher = teacher.base if isinstance(teacher, Shuffled) else teacher
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


def identity(teacher: Teacher) -> str:
    """A hash of everything but the data that a frozen source's outputs depend on.

    Raises:
        BankError: it has none.
    """
    wiring = teacher.wiring() if isinstance(teacher, Keyed) else None
    if not isinstance(teacher, Keyed) or wiring is None:
        raise BankError(f"{teacher.name!r} has no key that would tell its outputs from another's, so they stay live")
    return key_hash([wiring, [fingerprint(module) for module in teacher.modules()]])


def _type(teacher: Teacher) -> str:
    parameters = (p for module in modules_of(teacher) for p in module.parameters() if p.is_floating_point())
    first = next(parameters, None)
    # Networks give what they compute in lower precision as float32.
    return "float32" if first is None or first.dtype in LOW else str(first.dtype).removeprefix("torch.")


def _format(teacher: Teacher) -> str:
    """Channels last rounds otherwise."""
    weights = (p for module in modules_of(teacher) for p in module.parameters() if p.ndim == 4)
    last = any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)
    return ", channels last" if last else ""


def _by_network(items: Sequence[_Item]) -> list[tuple[Teacher, list[_Item]]]:
    """Sources of one network together, each time with what computes their common part."""
    groups: dict[int, tuple[Teacher, list[_Item]]] = {}
    for item in items:
        base = item.teacher.base if isinstance(item.teacher, Masked) else item.teacher
        alike = id(base.network) if isinstance(base, Live) else id(base)
        groups.setdefault(alike, (base, []))[1].append(item)
    return list(groups.values())


class _Producer:
    """Computes outputs of several sources of one network for a block of samples: the network's stem runs once."""

    def __init__(self, base: Teacher, items: Sequence[_Item], dataset: Dataset, device: torch.device) -> None:
        self._items = items
        self._dataset = dataset
        self._device = device
        signals = {item.want for item in items if item.teacher is base or isinstance(item.teacher, Live)}
        signals |= {Signal.cut(tap) for item in items for tap in _masked_tap(item.teacher)}
        self._base = base.select(signals) if signals else None
        self._reads = {modality for item in items for modality in item.teacher.modalities}
        self._rows = BLOCK_ROWS

    def read_from(self, cuts: Mapping[Signal, Bank]) -> None:
        """Take cuts from banks that are there already: they hold the same numbers, block by block."""
        if cuts and isinstance(self._base, Live):
            banked = Banked(self._base, cuts, self._base.signals)
            alone = {m for item in self._items if self._runs_alone(item.teacher) for m in item.teacher.modalities}
            self._base, self._reads = banked, alone | set(banked.reads)

    @torch.no_grad()
    def __call__(self, ids: Tensor, view: Tensor | None) -> Produced:
        size = min(self._rows, PASS_ROWS.get(self._device.type, len(ids)))
        starts = range(0, len(ids), size)
        parts = [self._passed(ids[s : s + size], None if view is None else view[s : s + size]) for s in starts]
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
        """Find how many rows go together: as many in every process that fills these banks."""

        def few(number: int) -> Batch:
            ids, view = rows.part(0, number)
            return self._dataset.batch(ids, only=self._reads, view=view).to(self._device)

        self._rows = rows_at_once(self._found, few, min(len(rows), BLOCK_ROWS), self._device)

    def _passed(self, ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        return self._found(self._dataset.batch(ids, only=self._reads, view=view).to(self._device))

    def _found(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | None]]:
        given = None if self._base is None else self._base(batch)
        found: dict[str, Outputs] = {}
        produced: dict[str, tuple[Tensor, Tensor | None]] = {}
        for item in self._items:
            if item.name not in found:
                found[item.name] = self._outputs(item, batch, given)
            outputs = found[item.name]
            if outputs.lengths:
                raise BankError(f"{item.label}: its rows are of different lengths, which a bank does not keep")
            produced[item.label] = outputs.need(item.want), outputs.rows
        return produced

    def _outputs(self, item: _Item, batch: Batch, given: Outputs | None) -> Outputs:
        if given is None or self._runs_alone(item.teacher):
            return item.teacher(batch)
        return item.teacher.continued(given) if isinstance(item.teacher, Masked) else given

    @staticmethod
    def _runs_alone(teacher: Teacher) -> bool:
        """Whether it takes whole passes of its own: several masks act in one pass."""
        return isinstance(teacher, Masked) and not _masked_tap(teacher)


def _joined(rows: Sequence[Tensor | None], starts: range, total: int) -> Tensor | None:
    """Which rows of a block were seen, out of those of its parts; None: all."""
    if all(one is None for one in rows):
        return None
    ends = [*starts[1:], total]
    spans = zip(rows, starts, ends, strict=True)
    return torch.cat([torch.arange(s, e) if one is None else one.cpu() + s for one, s, e in spans])


def _masked_tap(teacher: Teacher) -> tuple[str, ...]:
    """The one tap at which a teacher is masked; empty for all others."""
    return tuple(teacher.masks) if isinstance(teacher, Masked) and len(teacher.masks) == 1 else ()


def _cuts(base: Teacher, items: Sequence[_Item], folder: Path, rows: BankRows) -> dict[Signal, Bank]:
    """Complete banks of the base's cuts, as an earlier stage left them; half precision would change the numbers."""
    taps = {tap for item in items for tap in _masked_tap(item.teacher)}
    if not taps or not isinstance(base, Live):
        return {}
    weights, gives = identity(base), _type(base)
    found: dict[Signal, Bank] = {}
    for signal in map(Signal.cut, sorted(taps)):
        shape = wanted_shape(base.spec, signal, base.name)
        key = replace(items[0].key, weights=weights, want=str(signal), shape=shape, gives=gives, dtype=gives)
        try:
            bank = Bank.open(folder / key.folder, key, rows)
        except BankMissing:
            continue
        if not bank.missing():
            found[signal] = bank
    return found


def _filled(
    stage: str,
    items: Sequence[_Item],
    produce: _Producer,
    folder: Path,
    rows: BankRows,
    display: Display,
) -> dict[str, Bank]:
    """The banks of one network, complete; size and time are said before anything is written."""
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
    for module in (module for item in items for module in modules_of(item.teacher)):
        module.eval()
    produce.measure(rows)
    size = sum(item.key.bytes(len(rows)) for item in items if item.label not in banks)
    names = ", ".join(item.label for item in items if lacking[item.label])
    display.say(f"{stage}: bank of {names}: {estimate(rows, size, missing, BLOCK_ROWS, produce).text()}, in {folder}")
    for item in items:
        if item.label not in banks:
            banks[item.label] = Bank.create(folder, item.key, rows, {"source": item.name, "stage": stage})
    display.begin(f"{stage}: bank", missing)
    fill(banks, produce, display.advance, lambda text: display.say(f"{stage}: {text}"))
    display.end(f"{counted(missing, 'block')} of {BLOCK_ROWS} rows")
    return banks


def modules_of(teacher: Teacher) -> list[nn.Module]:
    """Modules that a frozen source runs."""
    return teacher.modules() if isinstance(teacher, Keyed) else []

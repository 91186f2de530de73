"""Sources of a stage's signals: the choice of banked and live outputs of each network, with reasons."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from crossdistill.bank.bank import BankSettings, StoredType, size_text
from crossdistill.bank.rows import BankRows
from crossdistill.data.augmentation import OwnAugmentation
from crossdistill.data.dataset import Dataset
from crossdistill.data.row_source import row_lengths, sources_in, varying
from crossdistill.data.sampler import Order
from crossdistill.errors import SettingError, SplitError
from crossdistill.method import STUDENT
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.runtime.files import read_sealed, write_sealed
from crossdistill.stage import Stage
from crossdistill.teacher import Live, Teacher, TeacherBase

log = logging.getLogger("crossdistill")

SOURCES = "sources.json"
"""File in a run folder with the choices of every stage."""
BANKED_SPLITS = ("train", "validation")
TRAINS = "it trains in this stage"
"""The reason that is not displayed."""


@dataclass(frozen=True, slots=True)
class BankChoice:
    """The choice for one output of a network in a stage: banked or live, the reason, and the bytes of its bank."""

    source: str
    want: str
    banked: bool
    reason: str
    bytes: int = 0
    dtype: StoredType = "float32"

    def text(self) -> str:
        """The choice as a sentence."""
        return f"{self.source} {self.want}: {'banked' if self.banked else 'live'}, {self.reason}"


Choices = tuple[BankChoice, ...]


def banked_rows(dataset: Dataset) -> BankRows:
    """A bank's rows: all rows that training and validation read, in increasing order of view and sample id.

    With augmentation, training rows are included in each view, and validation rows without augmentation.
    """
    views = None if dataset.augmentation is None else dataset.augmentation.views
    if views is None:
        return BankRows(torch.cat([dataset.splits[split] for split in BANKED_SPLITS]).unique())
    train, validation = (dataset.splits[split].unique() for split in BANKED_SPLITS)
    numbers = torch.arange(1, views + 1).repeat_interleave(len(train))
    return BankRows(torch.cat([validation, train.repeat(views)]), torch.cat([torch.zeros_like(validation), numbers]))


def decide(
    stage: Stage,
    student: Live,
    teachers: Mapping[str, Teacher],
    needs: Mapping[str, frozenset[Signal]],
    dataset: Dataset,
    order: Order,
    settings: BankSettings,
    moving: Collection[nn.Module] = (),
) -> Choices:
    """Choose banked or live, with a reason, for every output that a stage reads; the smallest outputs first.

    `needs` are the signals of the method, `moving` the networks that train in the stage.

    Raises:
        SettingError: the stage's source is "banked", but some outputs cannot be; one line for each.
    """
    sources = {name: TeacherBase.of(source) for name, source in {student.name: student, **teachers}.items()}
    wanted = {student.name if name == STUDENT else name: signals for name, signals in needs.items()}
    wanted.setdefault(student.name, frozenset({Signal.LOGITS}))
    num_rows = len(banked_rows(dataset))
    item_bytes = {"float32": 4, "float16": 2, "bfloat16": 2}[settings.dtype]
    rows_read = stage.epochs * (min(order.steps * order.batch_size, order.num_rows) + len(dataset.splits["validation"]))
    changing = _changing(dataset)
    why = {name: _never(stage, sources[name], moving) or changing for name in wanted}
    if stage.source == "auto" and rows_read <= num_rows:
        once = f"the stage reads {rows_read:,} rows in all, and a bank would be filled for {num_rows:,}"
        why = {name: reason or once for name, reason in why.items()}
    by_output: dict[tuple[str, Signal], BankChoice] = {}
    for name, signals in wanted.items():
        for signal in signals:
            reason = why[name] or _unbankable(sources[name].unshuffled, signal, dataset)
            size = 0 if reason else num_rows * item_bytes * _numbers(sources[name].spec, signal, name)
            by_output[name, signal] = BankChoice(name, str(signal), not reason, reason or "", size, settings.dtype)
    left = settings.budget
    for output, choice in sorted(by_output.items(), key=lambda item: (item[1].bytes, item[0])):
        if not choice.banked:
            continue
        fits = choice.bytes <= left
        left -= choice.bytes if fits else 0
        reason = (
            _same_again(dataset)
            if fits
            else f"its bank of {num_rows:,} rows would take {size_text(choice.bytes)}, and bank.budget leaves "
            f"{size_text(left)} of {size_text(settings.budget)}"
        )
        by_output[output] = BankChoice(choice.source, choice.want, fits, reason, choice.bytes, settings.dtype)
    choices = tuple(by_output[output] for output in sorted(by_output))
    if stage.source == "banked":
        learns = student.name if student.trained else None
        refused = [choice.text() for choice in choices if not choice.banked and choice.source != learns]
        if refused:
            raise SettingError(
                f"source is 'banked', but these outputs cannot be banked: {'; '.join(refused)}; set source to 'auto'"
            )
    return choices


def _changing(dataset: Dataset) -> str | None:
    """The reason why no output can be banked: the rows or their views are not fixed or have no key; None if none."""
    if _changing_sources(dataset):
        return _changing_sources(dataset)[0]
    if dataset.augmentation is None:
        return None
    if dataset.augmentation.views is None:
        return (
            "training rows have a new view in each epoch; with a fixed number of views (data.augmentation.views) the "
            "outputs could be banked"
        )
    if dataset.augmentation.key is None:
        why = "; ".join(unkeyed_views(dataset)[:3])
        return f"the augmentation has no key that distinguishes its views from another's{why and f': {why}'}"
    return None


def unkeyed_views(dataset: Dataset) -> list[str]:
    """Reasons why training rows or their views have no key; empty if they have one."""
    augmentation, changing = dataset.augmentation, _changing_sources(dataset)
    if augmentation is None or augmentation.key is not None:
        return changing
    if isinstance(augmentation, OwnAugmentation):
        return [*changing, *augmentation.code().faults.values()]
    return [*changing, f"the augmentation, a {type(augmentation).__name__}, has no key"]


def _changing_sources(dataset: Dataset) -> list[str]:
    """One reason for each input whose rows differ whenever they are read."""
    sources = sources_in(dataset.inputs).items()
    return [f"rows of {name!r} differ whenever they are read" for name, source in sources if not source.deterministic]


def _same_again(dataset: Dataset) -> str:
    views = None if dataset.augmentation is None else dataset.augmentation.views
    return "frozen, on data that stay the same" if views is None else f"frozen, in {views} views of each training row"


def _never(stage: Stage, teacher: TeacherBase, moving: Collection[nn.Module]) -> str | None:
    """The reason why no output of this source is banked; None if there is none."""
    source = teacher.unshuffled
    trained = {id(part) for network in moving for part in network.modules()}
    if any(id(part) in trained for module in source.modules() for part in module.modules()):
        return TRAINS
    if stage.source == "live":
        return "the stage's source is 'live'"
    unkeyed = source.unkeyed()
    return f"it has no key that distinguishes its outputs: {'; '.join(unkeyed[:3])}" if unkeyed else None


def _unbankable(teacher: TeacherBase, signal: Signal, dataset: Dataset) -> str | None:
    """The reason why this output cannot be stored as rows of numbers; None if it can."""
    changing = _changing_shape(teacher, signal, dataset)
    if changing:
        return f"its shape changes with the lengths of the rows of {', '.join(changing)}"
    if signal.kind != "cut":
        return None
    network = teacher.network
    if network is None:
        return "only a network can be cut"
    try:
        others = _others_at(network, signal.tap, dataset)
        why = network.replays(signal.tap)
        if why is not None:
            return (
                f"{why}. It is cut between its layers: their outputs before the cut are kept for each batch, "
                "and the code between them runs again"
            )
    except SplitError as error:
        return f"{error}; its whole forward pass runs"
    return f"{others} more tensors are live across this cut (skips, indices)" if others else None


def _changing_shape(teacher: TeacherBase, signal: Signal, dataset: Dataset) -> list[str]:
    """The inputs whose lengths change the shape of this output, as of the rows that are padded least and most."""
    names, network = varying({name: dataset.inputs[name] for name in teacher.modalities}), teacher.network
    if not names or network is None or signal.kind not in ("feature", "cut"):
        return []
    rows = dataset.splits["train"]
    order = row_lengths(dataset.inputs, "data")[rows].argsort()
    device, was = next((p.device for p in network.parameters()), torch.device("cpu")), network.training
    network.eval()
    with torch.no_grad():
        shapes = set()
        for place in (order[0], order[-1]):
            outputs = network(dataset.batch(rows[place][None]).to(device), {Signal.feature(signal.tap)})
            shapes.add(tuple(outputs.features[signal.tap].shape))
    network.train(was)
    return names if len(shapes) > 1 else []


def _others_at(network: Network, tap: str, dataset: Dataset) -> int:
    """The number of tensors other than the tap's value that the rest of a network reads."""
    modes = {module: module.training for module in network.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        with torch.no_grad():
            return len(network.cuts(dataset.example().to(device), [tap])[tap].context)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _numbers(spec: OutputSpec, signal: Signal, who: str) -> int:
    return torch.Size(wanted_shape(spec, signal, who)).numel()


def wanted_shape(spec: OutputSpec, signal: Signal, who: str) -> tuple[int, ...]:
    """The shape of one row of an output.

    Raises:
        SettingError: the network does not have this output.
    """
    if signal.tap:
        return tuple(spec.feature(signal.tap, who))
    shape = spec.logits if signal == Signal.LOGITS else spec.embedding
    if shape is None:
        raise SettingError(f"{who!r} has no output {signal}")
    return tuple(shape)


def masked_base(teacher: Teacher) -> TeacherBase | None:
    """The teacher masked by this one, also under the shuffled control; None if this one is not masked."""
    source = TeacherBase.of(teacher).unshuffled
    return None if source.base is source else source.base


def choices_key(choices: Sequence[BankChoice]) -> Any:
    """The part of a stage's key for its banked outputs; None if all are live."""
    return sorted([choice.source, choice.want, choice.dtype] for choice in choices if choice.banked) or None


def save_choices(out: Path, stages: Mapping[str, Choices]) -> None:
    """Write the choices of every stage, by the name of its folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_sealed(out / SOURCES, {name: [asdict(choice) for choice in choices] for name, choices in stages.items()})


def load_choices(out: Path) -> dict[str, Choices] | None:
    """The choices that a resumed run made at its start; None if the file is missing or damaged.

    New choices are part of the key of each stage, so that a difference is detected.
    """
    path = out / SOURCES
    if not path.is_file():
        return None
    try:
        return _CHOICES.validate_python(read_sealed(path))
    except ValueError as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        log.warning("%s is damaged (%s); banked and live outputs are chosen again", path, why)
        return None


_CHOICES = TypeAdapter(dict[str, Choices])


def explained(choices: Sequence[BankChoice]) -> list[str]:
    """The displayed choices: one line for each reason, without outputs of networks that train."""
    groups: dict[tuple[bool, str], list[BankChoice]] = {}
    for choice in choices:
        if choice.reason != TRAINS:
            groups.setdefault((choice.banked, choice.reason), []).append(choice)
    lines = []
    for (banked, reason), group in groups.items():
        names = ", ".join(f"{choice.source} {choice.want}" for choice in group)
        size = f" ({size_text(sum(choice.bytes for choice in group))})" if banked else ""
        lines.append(f"{names}: {'banked' if banked else 'live'}, {reason}{size}")
    return lines

"""Export of a bank of logits as one file that can be handed on; see `backends.bank_file`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from crossdistill.backends.bank_file import (
    SUFFIXES,
    BankFile,
    BankInfo,
    DataInfo,
    LicenceInfo,
    LogitsInfo,
    LossInfo,
    TeacherInfo,
    ViewsInfo,
    digest,
    write_bank_file,
)
from crossdistill.backends.compressed import LogitType, compress, measure_loss
from crossdistill.bank.bank import Bank, described
from crossdistill.bank.folder import find_banks, opened
from crossdistill.data.dataset import Dataset
from crossdistill.errors import BankError, BankMissing, SettingError, nearest
from crossdistill.outputs import Signal


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an exported file: the type of logits, how many of each row (None: all), and whether embeddings."""

    dtype: LogitType = "float32"
    top: int | None = None
    embedding: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A complete bank, and the description of its teacher."""

    bank: Bank
    source: str
    stage: str
    licence: Mapping[str, Any] | None


def export_bank(
    folder: Path,
    file: Path,
    dataset: Dataset,
    *,
    teacher: str | None = None,
    models: Mapping[str, str] | None = None,
    stages: Sequence[str] = (),
    form: Form | None = None,
) -> tuple[BankInfo, ...]:
    """Write the banks of teachers' logits to a file, with their measured loss; returns the file's descriptions.

    `folder` holds the banks of a run on `dataset`. By default all teachers with logits there are written. `models` are
    the names of networks by teacher; of a teacher with banks of several of the `stages`, the last one counts.

    Raises:
        BankMissing: there is no complete bank of it.
        BankDamaged: its values do not match their checksums.
        SettingError: the file's suffix or an option is unknown, several banks fit, or parquet gets several teachers.
        StorageError: the file cannot be written.
    """
    form = form or Form()
    if file.suffix.lower() not in SUFFIXES:
        raise SettingError(f"--to {file}: wanted a file {' or '.join(SUFFIXES)}, found {file.suffix or 'no suffix'!r}")
    if dataset.task != "classes":
        raise SettingError(f"data {dataset.name!r} has targets of {dataset.task!r}; logits of classes are exported")
    chosen = [_last(found, stages) for found in _by_teacher(folder, dataset, teacher)]
    embeddings = _embeddings(folder, chosen, dataset) if form.embedding else {}
    contents = [
        _content(found, embeddings.get(found.source), dataset, form, _model(models or {}, found.source))
        for found in chosen
    ]
    write_bank_file(file, contents)
    return tuple(content.info for content in contents)


def _content(found: Found, embedding: Bank | None, dataset: Dataset, form: Form, model: str | None) -> BankFile:
    found.bank.verify_values()
    at = _computed(found.bank)
    logits = found.bank.take(at).float()
    parts = compress(logits, form.dtype, form.top)
    loss = measure_loss(logits, parts)
    tensors = {"ids": _narrow(found.bank.rows.ids[at]), **{f"logits.{name}": part for name, part in parts.items()}}
    if found.bank.rows.view is not None:
        tensors["view"] = found.bank.rows.view[at].to(torch.int16)
    if embedding is not None:
        value = embedding.take(at)
        tensors["embedding"] = value if value.dtype == torch.float32 else value.to(torch.float16)
    info = BankInfo(
        teacher=TeacherInfo(name=found.source, model=model, licence=_licence(found.licence)),
        data=_data(dataset),
        classes=dataset.classes,
        rows=len(at),
        augmentation=_views(dataset, found.bank),
        logits=LogitsInfo(dtype=form.dtype, top=form.top),
        embedding=None if embedding is None else int(tensors["embedding"].shape[1]),
        loss=tuple(LossInfo(**asdict(one)) for one in loss.at),
        agreement=loss.agreement,
        digest=digest(tensors),
    )
    return BankFile(info, tensors)


def _by_teacher(folder: Path, dataset: Dataset, teacher: str | None) -> list[list[Found]]:
    """The complete banks of logits of each teacher, or of one.

    Raises:
        BankMissing: there are none; names the nearest.
    """
    fitting = _banks_of(folder, dataset, str(Signal.LOGITS))
    names = sorted({found.source for found in fitting})
    if not fitting or (teacher is not None and teacher not in names):
        whose = "a teacher's logits" if teacher is None else f"the logits of {teacher!r}"
        raise BankMissing(
            f"{folder} holds no bank of {whose} on this run's data; {nearest(teacher or '', names)}. A run fills it "
            "with stages.NAME.source=banked (data with new views in each epoch have none); of a run with --share or "
            "--banks, name that folder of banks with --banks"
        )
    return [[one for one in fitting if one.source == name] for name in ([teacher] if teacher else names)]


def _last(fitting: Sequence[Found], stages: Sequence[str]) -> Found:
    """The bank of the last stage that has one.

    Raises:
        SettingError: there are several.
    """
    last = max(_place(found.stage, stages) for found in fitting)
    own = [found for found in fitting if _place(found.stage, stages) == last]
    if len(own) > 1:
        paths = ", ".join(str(found.bank.path) for found in own[:4])
        raise SettingError(f"{len(own)} banks of {own[0].source!r} fit: {paths}; name one with --banks")
    return own[0]


def _place(stage: str, stages: Sequence[str]) -> int:
    return list(stages).index(stage) if stage in stages else -1


def _banks_of(folder: Path, dataset: Dataset, want: str) -> list[Found]:
    """The complete banks of an output on these data."""
    found = []
    for path in find_banks(folder):
        try:
            stored = described(path)
            if (stored["key"].get("data"), stored["key"].get("want")) != (dataset.fingerprint, want):
                continue
            bank = opened(path)
        except BankError:
            continue  # `bank check` reports damaged ones
        if not bank.missing():
            about = stored.get("about") or {}
            licence = about.get("licence") if isinstance(about.get("licence"), dict) else None
            found.append(Found(bank, str(about.get("source", "?")), str(about.get("stage", "")), licence))
    return found


def _embeddings(folder: Path, chosen: Sequence[Found], dataset: Dataset) -> dict[str, Bank]:
    """The banks of the embeddings of these networks on the same rows, by teacher, of those that have one.

    Raises:
        BankMissing: none of them has.
    """
    known = [other.bank for other in _banks_of(folder, dataset, str(Signal.EMBEDDING))]
    found: dict[str, Bank] = {}
    for one in chosen:
        wanted = one.bank.key.weights, one.bank.key.rows
        for bank in known:
            if (bank.key.weights, bank.key.rows) == wanted:
                bank.verify_values()
                found[one.source] = bank
    if not found:
        names = ", ".join(repr(one.source) for one in chosen)
        raise BankMissing(
            f"{folder} holds no bank of the embeddings of {names}; a run whose method reads them, such as richkd, "
            "fills it; leave --embedding out for the logits alone"
        )
    return found


def _computed(bank: Bank) -> Tensor:
    """The positions of the rows that the network computed.

    Raises:
        BankMissing: it computed none.
    """
    every = torch.arange(len(bank.rows))
    seen = bank.seen(every)
    at = every if seen is None else every[seen]
    if not len(at):
        raise BankMissing(f"bank {bank.path}: its network computed no row, since its inputs are absent in all of them")
    return at


def _narrow(ids: Tensor) -> Tensor:
    return ids.to(torch.int32) if int(ids.max()) < 2**31 else ids


def _model(models: Mapping[str, str], source: str) -> str | None:
    """The name of the teacher's network; of a local path its last part, since a path means nothing elsewhere."""
    if source not in models:
        return None
    library, colon, rest = models[source].partition(":")
    if colon and (os.path.exists(os.path.expanduser(rest)) or os.path.isabs(rest) or rest.startswith(("~", "."))):
        return f"{library}:{Path(rest).name}"
    return models[source]


def _licence(licence: Mapping[str, Any] | None) -> LicenceInfo | None:
    try:
        return None if licence is None else LicenceInfo.model_validate(dict(licence))
    except ValidationError:
        return None


def _data(dataset: Dataset) -> DataInfo:
    return DataInfo(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        splits={split: len(rows) for split, rows in dataset.splits.items()},
        licences=tuple(LicenceInfo(**asdict(licence)) for licence in dataset.licences),
    )


def _views(dataset: Dataset, bank: Bank) -> ViewsInfo | None:
    if bank.rows.view is None:
        return None
    own = dataset.augmentation
    settings: dict[str, Any] = {}
    if isinstance(own, BaseModel):
        settings = own.model_dump(mode="json", exclude_defaults=True)
    return ViewsInfo(key=bank.key.transform, views=bank.key.views, settings=settings)

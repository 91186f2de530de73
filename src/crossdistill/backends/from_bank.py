"""A teacher from a file of its outputs (`bank:FILE`), which needs no network: see `crossdistill bank export`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.bank_file import BankFile, BankInfo, LicenceInfo, read_bank_file, write_bank_file
from crossdistill.backends.compressed import rebuild
from crossdistill.backends.names import Built
from crossdistill.batch import Batch
from crossdistill.data.cache import cache_folder
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.errors import BankMissing, BankStale, SettingError, nearest
from crossdistill.network import Arguments, Network
from crossdistill.outputs import OutputSpec
from crossdistill.runtime.escaping import visible
from crossdistill.runtime.progress import counted

OPTIONS = ("teacher", "view")
SUFFIX = ".safetensors"
NAME = r"[A-Za-z0-9_][\w.-]{0,99}"
"""Form of the names of imported files."""
ABSENT = -1


def imported_folder() -> Path:
    """The folder of imported files, `banks` in the cache folder."""
    return cache_folder() / "banks"


def path_of(name: str) -> Path:
    """The file of `bank:NAME`: a path, or the name of an imported one.

    Raises:
        BankMissing: there is none; names the nearest.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    imported = imported_folder() / f"{name}{SUFFIX}"
    if re.fullmatch(NAME, name) and imported.is_file():
        return imported
    known = [file.stem for file in imported_folder().glob(f"*{SUFFIX}")]
    raise BankMissing(
        f"bank:{name}: there is no such file, and no imported bank of that name; {nearest(name, known)}. `crossdistill "
        "bank export RUN --to FILE` writes one, and `bank import FILE` imports it"
    )


def keep(file: Path, name: str | None = None) -> tuple[Path, tuple[BankInfo, ...]]:
    """Verify a file and copy it into the folder of imported ones, as safetensors; its path there and its descriptions.

    Raises:
        SettingError: the name is not valid, or names another file already.
        BankDamaged: see `read_bank_file`.
        StorageError: the folder cannot be written.
    """
    name = name if name is not None else file.stem
    if not re.fullmatch(NAME, name):
        raise SettingError(f"--name: wanted letters, digits and . _ -, as in clip-vit-l14, found {name!r}")
    contents = read_bank_file(file)
    infos = tuple(content.info for content in contents)
    path = imported_folder() / f"{name}{SUFFIX}"
    if path.is_file() and tuple(content.info for content in read_bank_file(path)) != infos:
        raise SettingError(f"another bank is imported as {name!r}: remove {path}, or give --name")
    write_bank_file(path, contents)
    return path, infos


def build(
    name: str, options: Mapping[str, Any], how: str | None, *, member: str, dataset: Dataset, student: bool
) -> Built:
    """A teacher of a file, verified against the data.

    The option `teacher` names it in a file of several; by default the one of the member's name. The option `view=0`
    takes a file of rows without augmentation for the augmented rows of the data.

    Raises:
        SettingError: an option is unknown, or the network would train.
        BankMissing, BankDamaged, BankStale: there is no such file, it is damaged, or it is of other data.
    """
    for option in options:
        if option not in OPTIONS:
            raise SettingError(f"{name} has no option {option!r}; {nearest(option, OPTIONS)}")
    view = options.get("view", 0)
    if view != 0 or isinstance(view, bool):
        raise SettingError(f"{name}: options.view: wanted 0, the rows without augmentation, found {view!r}")
    if student or how not in (None, "frozen"):
        raise SettingError(f"{name}: stored outputs do not train; name a network for what trains")
    path = path_of(name.partition(":")[2])
    content = _of_teacher(name, read_bank_file(path), options.get("teacher"), member)
    _check_data(path, content.info, dataset, plain="view" in options)
    place = _places(path, content, dataset, plain="view" in options)
    lacking = int((_wanted(place, dataset) < 0).sum())
    return Built(BankNetwork(content, place), (_said(content.info, lacking),))


def _of_teacher(name: str, contents: Sequence[BankFile], wanted: Any, member: str) -> BankFile:
    """The content of the teacher that is wanted, of the only one, or of the one of the member's name."""
    known = {content.info.teacher.name: content for content in contents}
    if wanted is None and len(contents) == 1:
        return contents[0]
    found = known.get(str(member if wanted is None else wanted))
    if found is None:
        raise SettingError(
            f"{name} has no teacher {str(wanted or member)!r}; {nearest(str(wanted or member), known)}; "
            "options.teacher names one"
        )
    return found


class StoredOutputs(nn.Module):
    """The outputs of a file as a module without weights, by the places of its rows."""

    def __init__(self, content: BankFile, place: Tensor) -> None:
        super().__init__()
        self.classes = len(content.info.classes)
        self.register_buffer("place", place)
        self.parts = tuple(content.logits)
        for name, value in content.logits.items():
            self.register_buffer(f"logits_{name}", value)
        self.embeds = "embedding" in content.tensors
        if self.embeds:
            self.register_buffer("embedding", content.tensors["embedding"])

    def places(self, ids: Tensor, view: Tensor | None) -> Tensor:
        """The place of each row in the file (B,), `ABSENT` for rows that it lacks."""
        place = self.get_buffer("place")
        return place[0 if view is None or len(place) == 1 else view, ids]

    def forward(self, at: Tensor) -> dict[str, Tensor | None]:
        """Logits and embedding of the rows at these places."""
        parts = {name: self.get_buffer(f"logits_{name}").index_select(0, at) for name in self.parts}
        embedding = self.get_buffer("embedding").index_select(0, at).float() if self.embeds else None
        return {"logits": rebuild(parts, self.classes), "embedding": embedding}


class BankNetwork(Network):
    """A network that reads the sample ids and views of a batch alone; rows that the file lacks have no outputs."""

    def __init__(self, content: BankFile, place: Tensor) -> None:
        size = content.info.embedding
        spec = OutputSpec((len(content.info.classes),), None if size is None else (size,))
        licence = content.info.teacher.licence
        stored = StoredOutputs(content, place)
        super().__init__(stored, ("ids",), spec=spec, licence=_licence(licence))
        # No modality is fetched for it.
        self.reads = ()

    def _places(self, batch: Batch) -> Tensor:
        stored = self.module
        assert isinstance(stored, StoredOutputs)
        return stored.places(batch.ids, batch.view)

    def usable(self, batch: Batch) -> tuple[Tensor | None, Batch]:
        """The rows that the file holds (None: all), and the batch of these rows."""
        known = self._places(batch) >= 0
        if bool(known.all()):
            return None, batch
        rows = known.nonzero().flatten()
        return rows, batch.select(rows)

    def arguments(self, batch: Batch) -> Arguments:
        """The places of the batch's rows, all of which the file holds."""
        return (self._places(batch),), {}

    def probe(self, batch: Batch) -> OutputSpec:
        """The sizes of its outputs, which the file states."""
        assert self.spec is not None
        return self.spec


def _licence(info: LicenceInfo | None) -> Licence | None:
    return None if info is None else Licence(**info.model_dump())


def _check_data(path: Path, info: BankInfo, dataset: Dataset, *, plain: bool) -> None:
    """Compare class names, data and augmentation of a file with those of the run.

    Raises:
        BankStale: they differ; says in what.
    """
    if dataset.task != "classes":
        raise BankStale(f"{path} holds logits of classes, and data {dataset.name!r} has targets of {dataset.task!r}")
    if info.classes != dataset.classes:
        raise BankStale(f"{path} is of other classes than data {dataset.name!r}: {_classes(info, dataset)}")
    if info.data.fingerprint != dataset.fingerprint:
        splits = {split: len(rows) for split, rows in dataset.splits.items()}
        raise BankStale(
            f"{path} is of other data: wanted {dataset.name!r} {splits}, fingerprint {dataset.fingerprint[:12]}, found "
            f"{info.data.name!r} {info.data.splits}, fingerprint {info.data.fingerprint[:12]}; a bank belongs to rows "
            "that are equal in content, order and splits: load the data that it was exported for"
        )
    augmentation = dataset.augmentation
    views, key = (0, None) if augmentation is None else (augmentation.views, augmentation.key)
    own = None if info.augmentation is None else info.augmentation.key
    if plain and info.views:
        raise BankStale(f"{path} holds augmented rows in {info.views} views; leave options.view out")
    if not plain and (info.views, own) != (views, key):
        cure = "set data.augmentation as in the file"
        if not info.views:
            cure = "options.view=0 of the teacher takes its outputs for rows without augmentation in every view"
        raise BankStale(
            f"{path} holds {_views(info.views, own)}, and the training rows have {_views(views, key)}; {cure}"
        )


def _classes(info: BankInfo, dataset: Dataset) -> str:
    if sorted(info.classes) == sorted(dataset.classes):
        number = next(i for i, pair in enumerate(zip(info.classes, dataset.classes, strict=True)) if len(set(pair)) > 1)
        return (
            f"they are in another order: class {number} is {dataset.classes[number]!r} in the data and "
            f"{info.classes[number]!r} in the file; load the data with its classes in that order"
        )
    lacks = [name for name in dataset.classes if name not in info.classes]
    unknown = [name for name in info.classes if name not in dataset.classes]
    missing, other = (", ".join(map(repr, names[:3])) or "none" for names in (lacks, unknown))
    return (
        f"wanted {len(dataset.classes)}, found {len(info.classes)}; it lacks {missing}, and of its own the data lack "
        f"{other}; load the data that it was exported for"
    )


def _views(views: int | None, key: str | None) -> str:
    if not views:
        return "rows without augmentation" if views == 0 else "a new view in each epoch"
    return f"{counted(views, 'view')} of the augmentation {str(key)[:12]}"


def _places(path: Path, content: BankFile, dataset: Dataset, *, plain: bool) -> Tensor:
    """The place of each row in the file by view and id (V, N), `ABSENT` for rows that it lacks.

    Raises:
        BankStale: it has rows that the data lack, or none of the training rows.
    """
    ids, rows = content.tensors["ids"].long(), len(dataset.targets)
    if int(ids.max()) >= rows:
        raise BankStale(f"{path} holds the sample {int(ids.max())}, and data {dataset.name!r} has {rows:,} rows")
    views = content.tensors.get("view")
    place = torch.full((content.info.views + 1, rows), ABSENT, dtype=torch.int32)
    place[0 if views is None else views.long(), ids] = torch.arange(len(ids), dtype=torch.int32)
    if len(place) > 1:
        # Rehearsals of a plan name no view, and training rows are held in augmented views only.
        place[0] = place[0].where(place[0] >= 0, place[1])
    if bool((_wanted(place, dataset)[: len(dataset.splits["train"])] < 0).all()):
        raise BankStale(f"{path} holds none of the {len(dataset.splits['train']):,} training rows")
    return place


def _wanted(place: Tensor, dataset: Dataset) -> Tensor:
    """The places of the rows that training reads, those of validation last."""
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    views = place[1:] if len(place) > 1 else place
    return torch.cat([views[:, train].flatten(), place[0, validation]])


def _said(info: BankInfo, lacking: int) -> str:
    form = f"{info.logits.dtype} logits"
    if info.logits.top is not None and info.logits.top < len(info.classes):
        form = f"the {info.logits.top} largest of {len(info.classes)} logits in {info.logits.dtype}"
    loss = next((one for one in info.loss if one.temperature == 1), None)
    parts = [
        f"stored outputs of {info.teacher.name}{'' if info.teacher.model is None else f' ({info.teacher.model})'}",
        f"{counted(info.rows, 'row')}{f' in {info.views} views' if info.views else ''}, {form}",
        *([] if loss is None else [f"KL to the full ones {loss.kl_mean:.2g}"]),
        *([f"it lacks {counted(lacking, 'row')}, which have no output of it"] if lacking else []),
    ]
    return visible("; ".join(parts))

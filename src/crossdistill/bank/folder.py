"""Folders of banks: listing, verifying and removing banks."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crossdistill.bank.bank import DESCRIPTION, Bank, BankKey, described, remedy
from crossdistill.bank.fill import being_filled
from crossdistill.bank.rows import BankRows
from crossdistill.errors import BankDamaged, BankError, BankMissing
from crossdistill.runtime.files import remove_folder, sweep


@dataclass(frozen=True, slots=True)
class BankEntry:
    """Description of a bank for listings: source, output, filled blocks, bytes on disk, seconds since its last use.

    `fault` is the reason why the bank cannot be used, or None.
    """

    path: str
    source: str
    want: str
    dtype: str
    rows: int
    blocks: int
    filled: int
    bytes: int
    idle_s: float
    fault: str | None = None


def find_banks(folder: Path) -> list[Path]:
    """All banks in a folder and its subfolders (a folder of banks, a run, a comparison), or the folder itself.

    Raises:
        BankMissing: there is no such folder.
    """
    if not folder.is_dir():
        raise BankMissing(
            f"there is no folder {folder}; banks are in the folder `banks` of a run or of a shared folder. A run has "
            "none whose teachers were all read live, as in a single epoch; --set stages.STAGE.source=banked stores them"
        )
    paths = [file.parent for file in folder.rglob(DESCRIPTION)]
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def opened(path: Path) -> Bank:
    """Open a bank from its folder alone, verified against its own description.

    Raises:
        BankDamaged: a file differs from the description, or the folder has another bank's name.
    """
    key = BankKey.from_data(described(path)["key"], path)
    if path.name != key.folder:
        raise BankDamaged(f"bank {path}: its key belongs to a folder named {key.folder!r}; remove or rename it")
    arrays = []
    for name in ("ids", "view"):
        try:
            arrays.append(torch.from_numpy(np.load(path / f"{name}.npy", allow_pickle=False)))
        except (OSError, ValueError, TypeError) as error:
            raise BankDamaged(f"bank {path}: {name}.npy cannot be read ({error}); {remedy(path)}") from error
    ids, view = arrays
    sound = all(array.dtype == torch.int64 and array.ndim == 1 for array in arrays) and len(ids) == len(view)
    rows = BankRows(ids, view if bool(view.any()) else None) if sound else None
    if rows is None or rows.key != key.rows:
        raise BankDamaged(
            f"bank {path}: ids.npy and view.npy do not match the hash of the rows in its key; {remedy(path)}"
        )
    return Bank.open(path, key, rows)


def entry(path: Path, *, values: bool = False) -> BankEntry:
    """The description of a bank; with `values`, all its values are read and compared with their checksums."""
    idle = time.time() - (path / DESCRIPTION).stat().st_mtime  # read before opening, which counts as a use
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    try:
        about = described(path).get("about", {})
        bank = opened(path)
        missing, blocks = len(bank.missing()), len(bank.blocks)
        if values and not missing:
            bank.verify_values()
    except BankError as error:
        return BankEntry(str(path), "?", "?", "?", 0, 0, 0, size, idle, str(error))
    finally:
        _unused_for(path, idle)
    name = str(about.get("source", "?"))
    return BankEntry(
        str(path), name, bank.key.want, bank.key.dtype, len(bank.rows), blocks, blocks - missing, size, idle
    )


def _unused_for(path: Path, idle: float) -> None:
    """Restore the time of the last use, since listing a bank does not count as one."""
    with suppress(OSError):
        os.utime(path / DESCRIPTION, (time.time() - idle,) * 2)


def to_prune(entries: Sequence[BankEntry], *, older_s: float | None = None, keep: int | None = None) -> list[BankEntry]:
    """The banks to remove: faulty ones, and those unused for longer than `older_s` seconds.

    After these, the longest unused ones follow until the rest take at most `keep` bytes.
    """
    chosen = [row for row in entries if row.fault or (older_s is not None and row.idle_s > older_s)]
    rest = sorted((row for row in entries if row not in chosen), key=lambda row: -row.idle_s)
    while keep is not None and rest and sum(row.bytes for row in rest) > keep:
        chosen.append(rest.pop(0))
    return chosen


def remove(path: Path) -> str | None:
    """Remove a bank as a whole; returns the reason if it is kept because a process is filling it.

    A run that reads the bank continues, since its mapped files stay until they are closed.

    Raises:
        BankError: the folder is not writable.
    """
    if being_filled(path):
        return f"{path} is kept: another process is filling it"
    try:
        remove_folder(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise BankError(f"{path} cannot be removed: {why}; make {path.parent} writable and clear it again") from error
    return None


def clear_leftovers(folder: Path) -> None:
    """Remove the incomplete folders of killed processes, in a folder and all its subfolders."""
    for path in {path.parent for path in folder.rglob(".*.tmp")}:
        sweep(path)

"""Folders of banks: what is in them, whether it is sound, and making room."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crossdistill.bank.bank import DESCRIPTION, Bank, BankKey, described
from crossdistill.bank.fill import being_filled
from crossdistill.bank.rows import BankRows
from crossdistill.errors import BankDamaged, BankError, BankMissing
from crossdistill.runtime.files import remove_folder, sweep


@dataclass(frozen=True, slots=True)
class BankEntry:
    """A bank for people: of whom, what, how much of it is filled, bytes on disk, seconds since it was last used.

    `fault` says what is wrong with it; None: nothing.
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
    """All banks in a folder and below it (a folder of banks, a run, a comparison), or the folder itself.

    Raises:
        BankMissing: there is no such folder.
    """
    if not folder.is_dir():
        raise BankMissing(f"there is no folder {folder}; banks are in `banks` of a run's folder, or of a shared one")
    found = [file.parent for file in folder.rglob(DESCRIPTION)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def opened(path: Path) -> Bank:
    """A bank by itself, whatever it is of, verified as far as its own description goes.

    Raises:
        BankDamaged: something in it is not as it was written, or it is in another bank's place.
    """
    found = described(path)
    key = BankKey.from_data(found["key"], path)
    if path.name != key.folder:
        raise BankDamaged(f"bank {path} is not where its key belongs, which is {key.folder!r}; remove or rename it")
    arrays = []
    for name in ("ids", "view"):
        try:
            arrays.append(torch.from_numpy(np.load(path / f"{name}.npy", allow_pickle=False)))
        except (OSError, ValueError, TypeError) as error:
            raise BankDamaged(f"bank {path}: {name}.npy cannot be read: {error}") from error
    ids, view = arrays
    sound = all(one.dtype == torch.int64 and one.ndim == 1 for one in arrays) and len(ids) == len(view)
    rows = BankRows(ids, view if bool(view.any()) else None) if sound else None
    if rows is None or rows.key != key.rows:
        raise BankDamaged(f"bank {path}: ids.npy and view.npy do not hold the rows that its key was made of")
    return Bank.open(path, key, rows)


def entry(path: Path, *, values: bool = False) -> BankEntry:
    """What a bank is; with `values` everything in it is read and compared with its checksums."""
    idle = time.time() - (path / DESCRIPTION).stat().st_mtime  # before it is opened, which counts as a use
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
    """Looking at a bank is no use of it."""
    with suppress(OSError):
        os.utime(path / DESCRIPTION, (time.time() - idle,) * 2)


def to_prune(entries: Sequence[BankEntry], *, older_s: float | None = None, keep: int | None = None) -> list[BankEntry]:
    """Which banks to remove: faulty ones, those unused for longer than `older_s` seconds, and for a size the oldest.

    After that the longest unused go, until the rest take at most `keep` bytes.
    """
    gone = [one for one in entries if one.fault or (older_s is not None and one.idle_s > older_s)]
    rest = sorted((one for one in entries if one not in gone), key=lambda one: -one.idle_s)
    while keep is not None and rest and sum(one.bytes for one in rest) > keep:
        gone.append(rest.pop(0))
    return gone


def remove(path: Path) -> str | None:
    """Take a bank away as a whole; gives the reason why not, when a process is filling it now.

    A run that reads it goes on: what it has mapped stays until it lets go.

    Raises:
        BankError: its folder is not writable.
    """
    if being_filled(path):
        return f"{path} is being filled now"
    try:
        remove_folder(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise BankError(f"{path} cannot be removed: {why}; make {path.parent} writable, and clear it again") from error
    return None


def clear_leftovers(folder: Path) -> None:
    """Remove half-made folders that killed processes left behind, in a folder and in all folders below it."""
    for path in {path.parent for path in folder.rglob(".*.tmp")}:
        sweep(path)

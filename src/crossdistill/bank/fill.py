"""Filling banks block by block, by one or several processes, so that a kill loses little work.

A process locks a block (the system releases the locks of a dead process), computes and writes it, flushes it to the
disk, and only then marks it as done. On file systems without locks, two processes may write the same bytes twice.
"""

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from crossdistill.bank.bank import STORED, Bank, mark, size_text
from crossdistill.bank.rows import BankRows
from crossdistill.errors import BankError, NonFiniteError, StorageError
from crossdistill.runtime.files import flush

COMMIT_S = 1.0
"""Seconds between two flushes, which are followed by the marks of the written blocks."""
COMMIT_BYTES = 64 * 2**20
"""Bytes after which written blocks are flushed and marked earlier."""
POLL_S = 0.05
"""Seconds between two checks of blocks that other processes compute."""

Produced = Mapping[str, tuple[Tensor, Tensor | None]]
Produce = Callable[[Tensor, Tensor | None], Produced]
"""Computes the outputs of sample ids in their views (see `BankRows`).

Returns for each bank, by label, the values of the computed rows and the positions of these rows (None: all)."""
Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Projected cost of filling: rows, missing blocks, bytes on disk, seconds on this machine."""

    num_rows: int
    blocks: int
    bytes: int
    seconds: float

    def text(self) -> str:
        """One line for the display."""
        return f"{self.num_rows:,} rows, {size_text(self.bytes)}, about {_duration(self.seconds)}"


def estimate(rows: BankRows, size: int, missing: int, block_rows: int, produce: Produce) -> Estimate:
    """Project the time from one block, which is computed and discarded; writes nothing."""
    produce(*rows.part(0, 2))  # traces and warms up
    began = time.perf_counter()
    for values, _ in produce(*rows.part(0, block_rows)).values():
        values[:1].cpu()  # waits for an accelerator
    return Estimate(len(rows), missing, size, (time.perf_counter() - began) * missing)


def fill(banks: Mapping[str, Bank], produce: Produce, advance: Callable[[], None], notice: Notice) -> None:
    """Fill the missing blocks of banks with the same rows, by label; `advance` is called after every block.

    If other processes fill the same banks, each block is computed by one of them. This call then waits for their
    blocks, and passes one line about it to `notice`.

    Raises:
        StorageError: the disk is full or a file not writable; marked blocks stay valid.
        NonFiniteError: an output is NaN or Inf, or overflows in the stored type; names the samples.
        BankError: the network's output has another type or shape than the bank.
    """
    if not banks:
        return
    rows, blocks = next((bank.rows, bank.blocks) for bank in banks.values())
    with ExitStack() as stack:
        writers = {label: stack.enter_context(_Writer(bank)) for label, bank in banks.items()}
        waiting = [n for n in range(len(blocks)) if any(not w.done(n) for w in writers.values())]
        clock = _Clock()
        notified = False
        while waiting:
            before = len(waiting)
            for number in list(waiting):
                claimed = {label: writer for label, writer in writers.items() if writer.claim(number)}
                if claimed:
                    ids, view = rows.part(*blocks[number])
                    produced = produce(ids, view)
                    for label, writer in claimed.items():
                        clock.written(writer.write(number, ids, *produced[label]))
                if all(writer.done(number) for writer in writers.values()):
                    waiting.remove(number)
                    advance()
                if clock.due():
                    _commit(writers, clock)
            _commit(writers, clock)
            if waiting and len(waiting) == before:
                if not notified:
                    notice(f"waiting for {len(waiting)} blocks, which another process computes")
                    notified = True
                time.sleep(POLL_S)


def _commit(writers: Mapping[str, "_Writer"], clock: "_Clock") -> None:
    for writer in writers.values():
        writer.commit()
    clock.reset()


class _Clock:
    """Counts seconds and bytes since the last flush."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._began = time.monotonic()
        self._bytes = 0

    def written(self, size: int) -> None:
        self._bytes += size

    def due(self) -> bool:
        return self._bytes >= COMMIT_BYTES or time.monotonic() - self._began >= COMMIT_S


class _Writer:
    """The open files of a bank that is being filled, with the blocks that are locked here and not yet marked."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._torch_type = STORED[bank.key.dtype][0]
        self._files: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._unmarked: dict[int, int] = {}
        self._locks = True

    def __enter__(self) -> "_Writer":
        path = self._bank.path
        try:
            for name in ("values", "seen", "blocks"):
                self._offsets[name] = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False).offset
                self._files[name] = os.open(path / f"{name}.npy", os.O_RDWR)
            self._files["claims"] = os.open(path / "claims.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            self._close()
            raise self._failed(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)  # releases the locks too
        self._files = {}

    def done(self, number: int) -> bool:
        """Whether a block is written, by this process or another one."""
        if number in self._unmarked:
            return True
        return os.pread(self._files["blocks"], 8, self._offsets["blocks"] + 8 * number) != bytes(8)

    def claim(self, number: int) -> bool:
        """Lock a missing block for this process; False if it is written or another process computes it."""
        if self.done(number):
            return False
        if self._locks:
            try:
                fcntl.lockf(self._files["claims"], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):
                return False
            except OSError:
                self._locks = False  # a file system without locks
        # The block may have been finished between the check and the lock.
        if self.done(number):
            self._release(number)
            return False
        return True

    def write(self, number: int, ids: Tensor, values: Tensor, rows: Tensor | None) -> int:
        """Write a locked block to the files without marking it; returns its size in bytes."""
        start, _ = self._bank.blocks[number]
        whole = self._whole(ids, values, rows)
        seen = np.ones(len(ids), np.uint8)
        if rows is not None:
            seen[:] = 0
            seen[rows.cpu().numpy()] = 1
        content, marks = whole.numpy().tobytes(), seen.tobytes()
        row_bytes = len(content) // len(ids)
        try:
            _write(self._files["values"], content, self._offsets["values"] + start * row_bytes)
            _write(self._files["seen"], marks, self._offsets["seen"] + start)
        except OSError as error:
            raise self._failed(error) from error
        self._unmarked[number] = mark(content, marks)
        return len(content)

    def commit(self) -> None:
        """Flush the written blocks, then mark them, so that every marked block is on the disk."""
        if not self._unmarked:
            return
        try:
            for name in ("values", "seen"):
                flush(self._files[name])
            for number, value in self._unmarked.items():
                _write(self._files["blocks"], value.to_bytes(8, "little"), self._offsets["blocks"] + 8 * number)
            flush(self._files["blocks"])
        except OSError as error:
            raise self._failed(error) from error
        for number in self._unmarked:
            self._release(number)
        self._unmarked = {}

    def _whole(self, ids: Tensor, values: Tensor, rows: Tensor | None) -> Tensor:
        """All rows of the block in the stored type; zeros for rows that were not computed."""
        key = self._bank.key
        dtype = str(values.dtype).removeprefix("torch.")
        if dtype != key.gives or tuple(values.shape[1:]) != key.shape:
            raise BankError(
                f"bank {self._bank.path}: wanted {key.want} as {key.gives} {key.shape}, found {dtype} "
                f"{tuple(values.shape[1:])}; the network's output depends on more than its key, so set the stage's "
                "source to live"
            )
        stored = values.detach().to(self._torch_type).cpu()
        bad = ~stored.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            computed = ids if rows is None else ids[rows.cpu()]
            shown = ", ".join(map(str, computed[bad].tolist()[:8]))
            precision = "" if key.dtype == key.gives else f" as {key.dtype}; bank.dtype={key.gives} may hold them"
            raise NonFiniteError(
                f"bank {self._bank.path}: {key.want} is NaN or Inf for the samples {shown}{precision}; "
                "look at these samples, and at the weights of the network"
            )
        if rows is not None:
            stored = stored.new_zeros((len(ids), *stored.shape[1:])).index_copy(0, rows.cpu(), stored)
        stored = stored.contiguous()
        return stored.view(torch.int16) if key.dtype == "bfloat16" else stored

    def _release(self, number: int) -> None:
        if self._locks:
            with suppress(OSError):
                fcntl.lockf(self._files["claims"], fcntl.LOCK_UN, 1, number)

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"bank {self._bank.path} could not be written: {error.strerror or error}; the finished blocks are "
            "intact. Free some space or choose another folder for banks, then go on with --resume"
        )


def being_filled(path: Path) -> bool:
    """Whether another process fills a block of this bank now."""
    try:
        file = os.open(path / "claims.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _write(file: int, content: bytes, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done:] if done else content, offset + done)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a moment"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"

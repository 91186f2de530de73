"""Filling: resumed after a kill at any moment, shared by processes, the same bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises, states
from torch import Tensor

from crossdistill.bank import fill as bank_fill
from crossdistill.bank.bank import Bank, BankKey
from crossdistill.bank.fill import Produced, being_filled, fill
from crossdistill.bank.rows import BankRows
from crossdistill.errors import StorageError

IDS = torch.arange(5000)
KEY = BankKey(weights="w", data="d", rows="r", want="logits", shape=(7,))

# A process of its own that fills the bank of `KEY` slowly, and writes down which blocks it computed.
WORKER = """
import sys, time
import torch
from pathlib import Path
from crossdistill.bank.bank import Bank, BankKey
from crossdistill.bank.fill import fill
from crossdistill.bank.rows import BankRows
import crossdistill.bank.fill
crossdistill.bank.fill.COMMIT_S = 0.02
folder, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
rows = BankRows(torch.arange(5000))
key = BankKey(weights="w", data="d", rows="r", want="logits", shape=(7,))
def produce(ids, view):
    time.sleep(pause)
    with log.open("a") as file: file.write(f"{int(ids[0]) // 256}\\n")
    return {"a": (torch.sin(ids[:, None] * torch.arange(1.0, 8.0)), None)}
bank = Bank.create(folder, key, rows, {})
print("ready", flush=True)
fill({"a": bank}, produce, lambda: None, lambda text: print(text, flush=True))
"""


def produce(ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
    return {"a": (torch.sin(ids[:, None] * torch.arange(1.0, 8.0)), None)}


def _start(folder: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder), str(log), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _fill(folder: Path) -> Bank:
    bank = Bank.create(folder, KEY, BankRows(IDS), {})
    fill({"a": bank}, produce, lambda: None, lambda text: None)
    return bank


def _bytes(bank: Bank) -> dict[str, bytes]:
    return {name: (bank.path / f"{name}.npy").read_bytes() for name in ("values", "seen", "blocks", "ids", "view")}


def test_progress_counts_missing_blocks_only(tmp_path: Path) -> None:
    bank = Bank.create(tmp_path, KEY, BankRows(IDS), {})
    done: list[int] = []
    computed: list[int] = []

    def stop_half_way(ids: Tensor, view: Tensor | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        if len(computed) == 8:
            raise KeyboardInterrupt
        computed.append(int(ids[0]) // 256)
        return produce(ids, view)

    with pytest.raises(KeyboardInterrupt):
        fill({"a": bank}, stop_half_way, lambda: done.append(1), lambda text: None)
    missing = bank.missing()
    done.clear()
    fill({"a": bank}, produce, lambda: done.append(1), lambda text: None)
    assert len(done) == len(missing)
    assert not bank.missing()
    assert torch.equal(bank.read(IDS), produce(IDS, None)["a"][0])


def test_banks_that_are_filled_together_need_not_lack_the_same_blocks(tmp_path: Path) -> None:
    first = _fill(tmp_path / "one")
    second = Bank.create(tmp_path / "two", KEY, BankRows(IDS), {})
    before = _bytes(first)

    def both(ids: Tensor, view: Tensor | None) -> Produced:
        return dict.fromkeys(("a", "b"), produce(ids, view)["a"])

    fill({"a": first, "b": second}, both, lambda: None, lambda text: None)
    assert _bytes(first) == before == _bytes(second)


def test_killed_while_filling_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    wanted = _bytes(_fill(tmp_path / "whole"))
    log = tmp_path / "log"
    for _ in range(3):
        process = _start(tmp_path / "killed", log, 0.05)
        assert process.stdout.readline() == "ready\n"
        before = len(log.read_text().split()) if log.exists() else 0
        while not log.exists() or len(log.read_text().split()) < before + 4:
            time.sleep(0.01)
        process.kill()
        process.wait()
        process.stdout.close()
    bank = Bank.create(tmp_path / "killed", KEY, BankRows(IDS), {})
    missing = bank.missing()
    assert 0 < len(missing) < len(bank.blocks)
    for number, (start, end) in enumerate(bank.blocks):
        if number not in missing:
            stored = np.load(bank.path / "values.npy", mmap_mode="r")[start:end]
            assert np.array_equal(stored, produce(IDS[start:end], None)["a"][0].numpy()), f"block {number} is marked"
    assert not being_filled(bank.path), "claims go with their process"
    fill({"a": bank}, produce, lambda: None, lambda text: None)
    assert _bytes(bank) == wanted


def test_two_processes_share_the_blocks(tmp_path: Path) -> None:
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    processes = [_start(tmp_path / "banks", log, 0.05) for log in logs]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    computed = [[int(line) for line in log.read_text().split()] for log in logs]
    assert all(computed), "both of them worked"
    assert sorted(computed[0] + computed[1]) == list(range(20)), "each block once"
    assert _bytes(Bank.create(tmp_path / "banks", KEY, BankRows(IDS), {})) == _bytes(_fill(tmp_path / "alone"))


def test_a_process_that_dies_leaves_its_blocks_to_the_others(tmp_path: Path) -> None:
    slow = _start(tmp_path / "banks", tmp_path / "slow", 30.0)
    assert slow.stdout.readline() == "ready\n"
    bank = Bank.create(tmp_path / "banks", KEY, BankRows(IDS), {})
    while not being_filled(bank.path):
        time.sleep(0.01)
    said: list[str] = []

    def kill_when_told(text: str) -> None:
        said.append(text)
        os.kill(slow.pid, signal.SIGKILL)

    fill({"a": bank}, produce, lambda: None, kill_when_told)
    slow.wait()
    slow.stdout.close()
    assert len(said) == 1
    states(said[0], 1)
    assert not bank.missing()


def test_where_locks_do_not_work_the_same_bytes_are_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(bank_fill.fcntl, "lockf", refuse)
    assert not _fill(tmp_path).missing()


def test_a_full_disk_is_met_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with raises(StorageError, "136.7 kB", "No space left on device", "live"):
        Bank.create(tmp_path, KEY, BankRows(IDS), {})
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank.create(tmp_path, KEY, BankRows(IDS), {})

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with raises(StorageError, "blocks"):
        fill({"a": bank}, produce, lambda: None, lambda text: None)
    monkeypatch.undo()
    assert bank.missing() == list(range(20))

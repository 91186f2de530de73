"""The same steps in several processes and in one: torch.distributed over gloo, each with a share of the rows."""

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from crossdistill.runtime.distributed import Devices
from crossdistill.testing.rehearsal import Contract, Rehearsal, with_absent

PATIENCE = 300.0
"""Timeout in seconds for processes that wait for each other."""


def compare_with_one(contract: Contract, ranks: int, tolerance: float) -> None:
    """Train some steps in several processes and in this one, and compare all weights and terms.

    Raises:
        AssertionError: weights or terms differ, a process failed, or the processes block each other.
    """
    # A function of the teachers' names cannot be sent to another process; the settings that it returns can.
    number = contract.numbers[0]
    names = list(contract.members(number))[1:]
    fixed = replace(contract, settings=contract.config(names))
    with tempfile.TemporaryDirectory() as folder:
        _start(fixed, number, ranks, Path(folder))
        weights, terms = _steps(fixed, number, Devices(torch.device("cpu")))
        for kind, wanted in {"weights": weights, "terms": terms}.items():
            for rank in range(ranks):
                of_rank = load_file(Path(folder) / f"{kind}-{rank}.safetensors")
                for name, value in wanted.items():
                    # As float64: flags and counts can be neither subtracted nor compared with a tolerance.
                    left, right = of_rank[name].double(), value.double()
                    close = torch.allclose(left, right, rtol=tolerance, atol=tolerance)
                    apart = (left - right).abs().max().item()
                    assert close, f"In {ranks} processes, rank {rank} has other {kind} of {name!r}: by {apart:.3g}"


def _start(contract: Contract, teachers: int, ranks: int, folder: Path) -> None:
    # Spawned, not forked: a fork would copy locks that threads of this process hold, without the threads.
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_process, args=(contract, teachers, rank, ranks, folder)) for rank in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + PATIENCE
        # If a process fails, stop waiting: the others would wait for it without end.
        while not any(process.exitcode for process in processes):
            waiting = [rank for rank, process in enumerate(processes) if process.is_alive()]
            if not waiting:
                break
            assert time.monotonic() < end, f"Ranks {waiting} of {ranks} have not ended within {PATIENCE:.0f} s"
            processes[waiting[0]].join(0.2)
        failed = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
        errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
        assert not failed, f"Ranks {sorted(failed)} of {ranks} failed: {' | '.join(errors) or failed}"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _process(contract: Contract, teachers: int, rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
        weights, terms = _steps(contract, teachers, Devices(torch.device("cpu"), rank, ranks))
        save_file(weights, folder / f"weights-{rank}.safetensors")
        save_file(terms, folder / f"terms-{rank}.safetensors")
        dist.destroy_process_group()
    except Exception as error:
        (folder / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise


def _steps(contract: Contract, teachers: int, devices: Devices) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and terms after steps with even and uneven shares, absent modalities, and a rank without rows."""
    logs: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, dataset in {"whole": contract.dataset, "absent": with_absent(contract.dataset, torch.nan)}.items():
        run = Rehearsal(contract, dataset, teachers=teachers, devices=devices)
        for number, rows in enumerate(_rows(run, absent=name == "absent")):
            step_logs = run.step(rows, number)
            logs |= {f"{name}/{number}/{key}": value.reshape(1) for key, value in step_logs.items()}
        weights |= {f"{name}/{key}": value.contiguous() for key, value in run.weights().items()}
    return weights, logs


def _rows(run: Rehearsal, *, absent: bool) -> Sequence[Tensor]:
    rows = run.rows()
    steps = [rows, rows[:7], rows[:1], run.rows(1)]
    if not absent:
        return steps
    # The student's modality is missing in all rows of the second rank, which therefore has no rows in this step.
    residue = rows % (len(run.dataset.inputs) + 2)
    there, missing = rows[residue != 0], rows[residue == 0]
    pairs = min(len(there), len(missing))
    return [*steps, torch.stack([there[:pairs], missing[:pairs]], 1).flatten()]

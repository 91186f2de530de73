import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import toy_recipe
from facts import raises, states
from kills import assert_same_run, killed_after
from row_sources import TensorRows, from_rows
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from crossdistill import run
from crossdistill.batch import Batch
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.data.dataset import Dataset
from crossdistill.data.workers import Request, Workers, end_workers, reading
from crossdistill.errors import DataError
from crossdistill.recipe import Checkpoints, Recipe
from crossdistill.stage import Stage
from crossdistill.testing import toy_dataset

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_workers_left() -> object:
    yield
    end_workers()


def with_workers(count: int = 2, **settings: object) -> Dataset:
    return replace(from_rows(toy_dataset(), **settings), workers=Workers(count))


def passed(dataset: Dataset, parts: list[Tensor], **request: object) -> list[Batch]:
    return list(dataset.batches((Request(part, **request) for part in parts), CPU))


def test_workers_read_what_this_process_reads() -> None:
    dataset, memory = with_workers(), toy_dataset()
    parts = list(torch.randperm(240, generator=torch.Generator().manual_seed(0)).split(17))
    for _ in range(2):
        read = passed(dataset, parts)
        assert [batch.ids.tolist() for batch in read] == [part.tolist() for part in parts]
        for batch in read:
            assert all(batch.inputs[name].equal(values[batch.ids]) for name, values in memory.inputs.items())
    assert dataset.inputs["first"].fetched == []
    only = passed(dataset, parts[:2], only={"second"}, total_rows=99)
    assert [(list(batch.inputs), batch.total_rows) for batch in only] == [(["second"], 99)] * 2


def test_a_pass_may_begin_before_the_last_has_ended() -> None:
    dataset = with_workers()
    parts = list(torch.arange(240).split(10))
    first = dataset.batches((Request(part) for part in parts), CPU)
    seen = [next(first).ids.tolist()]
    assert len(passed(dataset, parts)) == 24
    seen += [batch.ids.tolist() for batch in first]
    assert seen == [part.tolist() for part in parts]


def test_workers_that_ended_between_two_passes_are_replaced() -> None:
    dataset = with_workers()
    parts = list(torch.arange(40).split(10))
    thread = threading.Thread(target=passed, args=(dataset, parts))
    thread.start()
    thread.join()
    assert len(passed(dataset, parts)) == 4
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    assert len(passed(dataset, parts)) == 4


def test_the_random_state_of_training_is_untouched() -> None:
    before = torch.random.get_rng_state()
    passed(with_workers(), list(torch.arange(40).split(10)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("error", [OSError("truncated"), MemoryError()], ids=["broken", "memory"])
def test_a_broken_row_is_named(error: Exception) -> None:
    dataset = with_workers(broken={33: error})
    with raises(DataError, "toy", "row 33", "file-33.jpg", type(error).__name__):
        passed(dataset, [torch.arange(30), torch.tensor([33])])


class Deadly(TensorRows):
    """Its row 7 kills the process that reads it, as a lack of memory does."""

    def fetch(self, rows: Tensor) -> Tensor:
        for row in rows.tolist():
            reading(row)
            if row == 7:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().fetch(rows)


def test_a_worker_that_dies_names_its_row() -> None:
    toy = toy_dataset()
    dataset = replace(toy, inputs={**toy.inputs, "first": Deadly(toy.inputs["first"])}, sample="", workers=Workers(2))
    with raises(DataError, "toy", "first", "row 7", "file-7.jpg", "SIGKILL", "data.workers"):
        passed(dataset, list(torch.arange(40).split(4)))


@pytest.fixture
def _handler_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first loader of the test installs PyTorch's handler of SIGCHLD, as it does in a process of its own."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    yield
    end_workers()
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_handler_of_torch")
def test_a_worker_that_dies_during_a_step_is_named_by_the_next_batch() -> None:
    # PyTorch's handler raises wherever the main process is.
    assert list(DataLoader(list(range(4)), num_workers=1)) != []
    batches = with_workers().batches((Request(part) for part in torch.arange(240).split(4)), CPU)
    next(batches)
    for child in multiprocessing.active_children():
        child.kill()
    time.sleep(0.2)
    with raises(DataError, "toy", "SIGKILL", "data.workers"):
        list(batches)


@pytest.mark.usefixtures("_handler_of_torch")
def test_a_dead_worker_of_a_programs_own_loader_still_raises() -> None:
    assert len(passed(with_workers(), list(torch.arange(40).split(10)))) == 4
    end_workers()
    loader = iter(DataLoader(list(range(400)), num_workers=1))
    multiprocessing.active_children()[0].kill()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(loader)


def test_the_number_of_workers_is_chosen_and_said() -> None:
    states(from_rows(toy_dataset()).facts()[-1], "first", "second", "worker", "data.workers")
    states(with_workers(0).facts()[-1], "this process")
    assert not any("worker" in line for line in toy_dataset().facts())


def _recipe(dataset: Dataset) -> Recipe:
    dataset = replace(dataset, augmentation=Variations(inputs={"first": Variation(noise=0.1)}, views=2))
    stage = Stage(method="kd", epochs=3, batch_size=24, micro_batches=2)
    return toy_recipe(stage, data=dataset, checkpoints=Checkpoints(steps=5))


def test_a_run_with_workers_has_the_numbers_of_one_without(tmp_path: Path) -> None:
    run(_recipe(toy_dataset()), tmp_path / "memory")
    run(_recipe(with_workers()), tmp_path / "workers")
    assert_same_run(tmp_path / "workers", tmp_path / "memory")


class Slow(TensorRows):
    """Takes a moment for each batch."""

    def fetch(self, rows: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().fetch(rows)


def test_a_run_with_workers_that_was_killed_ends_in_the_same_bits(tmp_path: Path) -> None:
    toy = toy_dataset()
    slow = replace(toy, inputs={**toy.inputs, "first": Slow(toy.inputs["first"])}, sample="", workers=Workers(2))
    run(_recipe(toy), tmp_path / "whole")
    killed_after(1.5, lambda: run(_recipe(slow), tmp_path / "run"))
    run(_recipe(slow), tmp_path / "run", resume=(tmp_path / "run" / "recipe.yaml").exists())
    assert_same_run(tmp_path / "run", tmp_path / "whole")

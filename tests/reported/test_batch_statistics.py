"""Layers that normalise by the batch: several processes, micro-batches, and steps of one row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import toy_recipe
from facts import raises
from torch import Tensor, nn

from crossdistill import Recipe, Stage, run
from crossdistill.data.sampler import Order
from crossdistill.errors import RecipeError
from crossdistill.methods import Specialise, Supervised
from crossdistill.nets.batch_statistics import JointStatistics, batch_statistics, is_joint, standing_in
from crossdistill.planning.plan import prepare
from crossdistill.testing import TOY_MAPS, toy_dataset

CPU = torch.device("cpu")


class OwnBatchNorm(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value - value.mean(0)


class GhostNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(width)

    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([self.inner(part) for part in value.split(2)])


class KeptFrozen(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> "KeptFrozen":
        return super().train(False)


class TrackingInstanceNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(3, track_running_stats=True)

    def forward(self, value: Tensor) -> Tensor:
        return self.norm(value.view(len(value), 3, -1)).flatten(1)


def supervised(norm: nn.Module | None, rows: int = 105, **settings: Any) -> Recipe:
    data = toy_dataset(("first", "second"), rows=rows)
    stage = Stage.model_validate({"method": Supervised(), "epochs": 1, "batch_size": 16} | settings)
    made = toy_recipe(stage, data=data, teachers={})
    if norm is not None:
        made.student.module.normalise = norm
    return made


def masks_on_maps(tap: str = "early", rows: int = 105, **settings: Any) -> Recipe:
    data = toy_dataset({name: TOY_MAPS[name] for name in ("first", "second")}, rows=rows)
    method = Specialise(taps={"teacher-0": (tap,)}, heads=1)
    stage = Stage.model_validate({"method": method, "trains": (), "epochs": 1, "batch_size": 16} | settings)
    return toy_recipe(stage, data=data, teachers=1, maps=True)


def planned(recipe: Recipe, ranks: int = 1) -> Any:
    return prepare(recipe, recipe.data, CPU, ranks=ranks)


def refusal(recipe: Recipe, ranks: int = 1) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(recipe, ranks)
    return str(caught.value)


@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (lambda: nn.BatchNorm1d(12), "BatchNorm1d"),
        (lambda: nn.BatchNorm1d(12, track_running_stats=False), "BatchNorm1d"),
        (lambda: nn.SyncBatchNorm(12), "SyncBatchNorm"),
        (OwnBatchNorm, "OwnBatchNorm"),
        (lambda: GhostNorm(12), "GhostNorm"),
        (TrackingInstanceNorm, "InstanceNorm1d"),
    ],
)
def test_a5_micro_batches_are_refused_where_statistics_of_the_batch_train(
    norm: Callable[[], nn.Module], name: str
) -> None:
    text = refusal(supervised(norm(), micro_batches=3))
    assert name in text
    assert "micro_batches" in text
    assert "3" in text


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(12), lambda: KeptFrozen(12), lambda: None])
def test_a5_micro_batches_stay_where_no_statistics_of_the_batch_train(norm: Callable[[], nn.Module | None]) -> None:
    planned(supervised(norm(), micro_batches=3))


def test_a5_masks_on_maps_refuse_micro_batches() -> None:
    assert "BatchNorm2d" in refusal(masks_on_maps(micro_batches=2))
    planned(masks_on_maps("hidden", micro_batches=2))


def test_a5_a_frozen_teacher_whose_batch_norm_has_no_running_statistics_refuses_micro_batches() -> None:
    recipe = masks_on_maps("hidden", micro_batches=2)
    (teacher,) = recipe.teachers.values()
    teacher.module.early = nn.BatchNorm2d(8, track_running_stats=False)
    assert "BatchNorm2d" in refusal(recipe)


@pytest.mark.parametrize(
    "norm",
    [OwnBatchNorm, lambda: GhostNorm(12), TrackingInstanceNorm, lambda: nn.BatchNorm1d(12, track_running_stats=False)],
)
def test_a5_two_processes_refuse_statistics_that_cannot_be_joined(norm: Callable[[], nn.Module]) -> None:
    assert "2 processes" in refusal(supervised(norm()), ranks=2)
    planned(supervised(norm()))


@pytest.mark.parametrize("recipe", [lambda: supervised(nn.BatchNorm1d(12)), masks_on_maps, lambda: supervised(None)])
def test_a5_two_processes_take_torch_batch_norms(recipe: Callable[[], Recipe]) -> None:
    planned(recipe(), ranks=2)


NORMS = {
    "1d": (lambda: nn.BatchNorm1d(3), (12, 3)),
    "sequence": (lambda: nn.BatchNorm1d(3), (12, 3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), (12, 3, 4, 2)),
    "3d": (lambda: nn.BatchNorm3d(3), (12, 3, 2, 2, 2)),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (12, 3, 4, 2)),
    "plain": (lambda: nn.BatchNorm1d(3, affine=False), (12, 3)),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("others", [(12,), (7, 5), (11, 1), (12, 0)])
def test_a5_joint_statistics_equal_those_of_the_whole_batch(kind: str, others: tuple[int, ...]) -> None:
    """Output, every gradient and every running statistic, by hand over the ranks: they meet in turns."""
    make, shape = NORMS[kind]
    torch.manual_seed(0)
    whole = make().double().train()
    value = (torch.randn(shape, dtype=torch.float64) * 3 + 20).requires_grad_()
    above = torch.randn(shape, dtype=torch.float64)
    wanted = whole(value)
    (wanted * above).sum().backward()
    found = in_threads(make, value.detach().split(list(others)), above.split(list(others)))
    torch.testing.assert_close(torch.cat([one["output"] for one in found]), wanted.detach())
    torch.testing.assert_close(torch.cat([one["gradient"] for one in found]), value.grad)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(sum(one[name] for one in found), parameter.grad)
    for one in found:
        assert one["state"].keys() == whole.state_dict().keys()
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(one["state"][name], buffer)


def in_threads(make: Callable[[], nn.Module], shares: Any, above: Any) -> list[dict[str, Any]]:
    """One thread for each share, which exchange their vectors at a barrier."""
    import threading

    ranks = len(shares)
    barrier, board = threading.Barrier(ranks, timeout=60), [torch.zeros(0)] * ranks
    found: list[dict[str, Any]] = [{} for _ in range(ranks)]

    def work(rank: int) -> None:
        def exchange(numbers: Tensor) -> Tensor:
            board[rank] = numbers
            barrier.wait()
            table = torch.stack(board)
            barrier.wait()
            return table

        norm = make().double().train()
        before = dict(norm.__dict__)
        value = shares[rank].clone().requires_grad_()
        with JointStatistics([norm], exchange).entered():
            assert is_joint(norm)
            if len(value):
                output = norm(value)
            else:
                with standing_in(norm):
                    output = norm(torch.full((1, *value.shape[1:]), 5.0, dtype=torch.float64) + value.sum())[:0]
        assert norm.__dict__.keys() == before.keys()
        assert not is_joint(norm)
        (output * above[rank]).sum().backward()
        assert value.grad is not None
        gradients = {name: parameter.grad for name, parameter in norm.named_parameters()}
        found[rank] = {"output": output.detach(), "gradient": value.grad, "state": norm.state_dict(), **gradients}

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found)
    return found


def test_a5_norms_in_another_order_are_told_and_not_mixed() -> None:
    norms = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)]).train()

    def exchange(numbers: Tensor) -> Tensor:
        other = numbers.clone()
        other[0] = 2
        return torch.stack([numbers, other])

    with JointStatistics([norms], exchange).entered(), raises(RuntimeError, "processes"):
        norms[0](torch.randn(4, 3))


def test_a5_finding_statistics_leaves_modes_as_they_were() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3).eval(), nn.Dropout(), nn.BatchNorm1d(3))
    modes = [part.training for part in module.modules()]
    assert list(batch_statistics(module)) == ["0", "2"]
    assert [part.training for part in module.modules()] == modes


def test_c_batches_of_one_row_join_the_batch_before() -> None:
    order = Order(torch.arange(65), 65, 64, 0, joins=True)
    assert order.steps == 1
    assert [len(rows) for rows in order.epoch(3)] == [65]
    longer = Order(torch.arange(33), 33, 8, 0, joins=True)
    assert [len(rows) for rows in longer.epoch(0)] == [8, 8, 8, 9]
    assert torch.equal(torch.cat(list(longer.epoch(0))), torch.cat(list(Order(torch.arange(33), 33, 8, 0).epoch(0))))
    # Any position can be found again.
    assert all(torch.equal(a, b) for a, b in zip(longer.epoch(0, 2), list(longer.epoch(0))[2:], strict=True))


@pytest.mark.parametrize(
    ("rows", "size", "limit", "joins", "wanted"),
    [
        (65, 64, None, False, [64, 1]),
        (66, 64, None, True, [64, 2]),
        (64, 64, None, True, [64]),
        (33, 8, 4, True, [8, 8, 8, 8]),
        (33, 8, 5, True, [8, 8, 8, 9]),
        (33, 8, 2, True, [8, 8]),
        (1, 64, None, True, [1]),
        (3, 1, None, True, [1, 1, 1]),
    ],
)
def test_c_batches_that_do_not_join(rows: int, size: int, limit: int | None, joins: bool, wanted: list[int]) -> None:
    order = Order(torch.arange(rows), rows, size, 0, limit, joins)
    assert order.steps == len(wanted)
    assert [len(found) for found in order.epoch(0)] == wanted


@pytest.mark.parametrize("recipe", [supervised, masks_on_maps])
def test_c_batches_whose_last_has_one_row_train(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """109 rows train 65: 64 and 1."""
    made = (
        supervised(nn.BatchNorm1d(12), rows=109, batch_size=64)
        if recipe is supervised
        else masks_on_maps("late", 109, batch_size=64)
    )
    assert len(made.data.splits["train"]) == 65
    (job,) = planned(made).jobs
    assert job.order.steps == 1
    run(made, tmp_path / "out")


def test_c_batches_without_batch_norm_keep_their_rows_and_keys() -> None:
    (plain,) = planned(supervised(None, rows=109, batch_size=64)).jobs
    assert [len(rows) for rows in plain.order.epoch(0)] == [64, 1]
    (joined,) = planned(supervised(nn.BatchNorm1d(12), rows=109, batch_size=64)).jobs
    (even,) = planned(supervised(nn.BatchNorm1d(12), rows=109, batch_size=63)).jobs
    assert joined.order.joined
    assert not even.order.joined


def test_c_batches_of_one_row_each_are_refused_before_training() -> None:
    assert "batch_size is 1" in refusal(supervised(nn.BatchNorm1d(12), batch_size=1))
    assert "batch_size is 1" in refusal(masks_on_maps("late", batch_size=1))
    # One map has positions enough for a variance.
    planned(masks_on_maps("early", batch_size=1))
    planned(supervised(None, batch_size=1))


def test_c_batches_with_one_present_row_are_refused_before_training() -> None:
    data = toy_dataset(("first", "second"), rows=105, absent={"first": 0.8})
    stage = Stage.model_validate({"method": Supervised(), "epochs": 5, "batch_size": 4})
    text = refusal(toy_recipe(stage, data=data, teachers={}, normalised=True))
    assert "only one row" in text
    assert "larger than 4" in text
    whole = Stage.model_validate({"method": Supervised(), "epochs": 5, "batch_size": 63})
    planned(toy_recipe(whole, data=data, teachers={}, normalised=True))

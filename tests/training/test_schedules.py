"""Optimizers of torch by name, learning rates over a stage, and decay groups."""

import copy
import math
from typing import Any

import pytest
import torch
from facts import raises
from pydantic import ValidationError
from torch import Tensor, nn

from crossdistill import OptimizerConfig, Stage
from crossdistill import Stage as StageConfig
from crossdistill.methods.kd import KD
from crossdistill.runtime.torch_optimizers import REFUSED, optimizer_classes
from crossdistill.testing import toy_dataset
from crossdistill.testing.rehearsal import Contract, Rehearsal
from crossdistill.training.optimizer import decay_groups, optimizer_for, rate_factor
from crossdistill.weighting import DotConfig

DAMPED = {"name": "sgd", "momentum": 0, "arguments": {"dampening": 0.1}}
OTHERS = sorted(set(optimizer_classes()) - {"adam", "adamw", "sgd"})


def config(**given: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate(given)


def descend(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        value = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(value).square().sum().backward()
        optimizer.step()


def weights(module: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten() for one in module.parameters()])


@pytest.mark.parametrize("name", OTHERS)
def test_an_optimizer_of_torch_takes_torchs_own_steps_and_resumes(name: str) -> None:
    mine, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(mine.state_dict())
    optimizer = optimizer_for(config(name=name.upper(), learning_rate=0.01), [{"params": list(mine.parameters())}])
    assert type(optimizer) is getattr(torch.optim, name)
    descend(mine, optimizer, range(3))
    descend(theirs, getattr(torch.optim, name)(theirs.parameters(), lr=0.01), range(3))
    assert torch.equal(weights(mine), weights(theirs))
    other = copy.deepcopy(mine)
    again = optimizer_for(config(name=name), [{"params": list(other.parameters())}])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(mine, optimizer, range(3, 6))
    descend(other, again, range(3, 6))
    assert torch.equal(weights(mine), weights(other))


@pytest.mark.parametrize(
    ("given", "kind", "arguments"),
    [
        ({"name": "rmsprop", "arguments": {"alpha": 0.9}}, torch.optim.RMSprop, {"alpha": 0.9}),
        ({"name": "adam", "arguments": {"betas": [0.8, 0.9]}}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
        ({"name": "adamw", "arguments": {"amsgrad": True}}, torch.optim.AdamW, {"amsgrad": True, "weight_decay": 0}),
        ({"name": "SGD", "arguments": {"nesterov": True}}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)  # fmt: skip
def test_arguments_reach_the_optimizer(given: dict[str, Any], kind: Any, arguments: dict[str, Any]) -> None:
    mine, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(mine.state_dict())
    descend(mine, optimizer_for(config(**given, learning_rate=0.01), [{"params": list(mine.parameters())}]), range(3))
    descend(theirs, kind(theirs.parameters(), lr=0.01, **arguments), range(3))
    torch.testing.assert_close(weights(mine), weights(theirs))


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"name": "rmsprpo"}, ["'rmsprpo'", "did you mean 'RMSprop'"]),
        *(({"name": name.lower()}, [name, "cannot train"]) for name in REFUSED),
        ({"name": "rmsprop", "arguments": {"alhpa": 0.9}}, ["'alhpa'", "did you mean 'alpha'"]),
        ({"name": "rmsprop", "arguments": {"lr": 0.9}}, ["arguments.lr", "optimizer.learning_rate"]),
        ({"name": "sgd", "arguments": {"momentum": 0.9}}, ["arguments.momentum", "optimizer.momentum"]),
        ({"name": "adam", "arguments": {"fused": True}}, ["arguments.fused"]),
        ({"name": "Adamax", "arguments": {"betas": [2, 0.9]}}, ["Adamax refuses"]),
        ({"name": "rprop", "weight_decay": 0.1}, ["weight_decay", "Rprop"]),
        ({"name": "nadam", "moments": "disk"}, ["moments", "NAdam"]),
        ({"arguments": {"amsgrad": True}, "moments": "disk"}, ["moments", "betas and eps"]),
        ({"schedule": "milestones"}, ["milestones"]),
        ({"milestones": [1]}, ["milestones", "'constant'"]),
        ({"schedule": "milestones", "milestones": [2, 1]}, ["[2.0, 1.0]"]),
        ({"schedule": "linaer"}, ["'linear'"]),
    ],
)
def test_what_no_optimizer_can_do_is_refused_before_training(given: dict[str, Any], facts: list[str]) -> None:
    with raises(ValidationError, *facts):
        config(**given)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"optimizer": {"warm_up": 3}}, ["warm_up", "3 epochs", "has 2"]),
        ({"optimizer": {"schedule": "milestones", "milestones": [1, 2]}}, ["milestones", "[2.0]", "2 epochs"]),
        ({"cuda_graphs": True, "optimizer": {"warm_up": 1}}, ["a constant learning rate"]),
        ({"cuda_graphs": True, "optimizer": {"name": "nadam"}}, ["adam, adamw or sgd"]),
        ({"weighting": DotConfig(), "optimizer": DAMPED}, ["no optimizer.arguments"]),
        ({"ema": 0.9, "trains": ()}, ["ema", "'student'"]),
        ({"ema": 1.0}, ["ema"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_stage_is_refused(given: dict[str, Any], facts: list[str]) -> None:
    with raises(ValidationError, *facts):
        StageConfig.model_validate({"method": "kd", "epochs": 2, **given})


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "milestones"])
@pytest.mark.parametrize("warm_up", [0.0, 0.5, 2.0])
def test_a_rate_grows_to_the_whole_one_and_then_follows_its_schedule(schedule: str, warm_up: float) -> None:
    milestones = {"milestones": [3, 3.5], "gamma": 0.5} if schedule == "milestones" else {}
    own = config(schedule=schedule, warm_up=warm_up, **milestones)
    steps, epochs = 10, 4
    rates = [rate_factor(own, step, steps, epochs) for step in range(steps * epochs + 1)]
    warm = int(warm_up * steps)
    assert rates[:warm] == pytest.approx([(step + 1) / (warm + 1) for step in range(warm)])
    assert rates[warm] == 1.0
    last = {"constant": 1.0, "cosine": 0.0, "linear": 0.0, "milestones": 0.25}[schedule]
    assert rates[-1] == pytest.approx(last, abs=1e-12)
    middle = (warm + steps * epochs) // 2
    done = (middle - warm) / (steps * epochs - warm)
    if schedule in ("cosine", "linear"):
        wanted = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
        assert rates[middle] == pytest.approx(wanted)
    elif schedule == "milestones":
        assert (rates[29], rates[30], rates[34], rates[35]) == (1.0, 0.5, 0.5, 0.25)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_run_has_the_rates_of_its_schedule(schedule: str) -> None:
    own = config(name="sgd", learning_rate=0.2, schedule=schedule, warm_up=0.5, rates={"student-network": 0.1})
    case = Rehearsal(Contract(KD(), toy_dataset()), teachers=1, optimizer=own)
    steps = case.job.order.steps
    for number in range(steps):
        found = [group["lr"] for group in case.training.optimizer.param_groups]
        assert found == pytest.approx([0.1 * rate_factor(own, number, steps, 1)])
        case.step(case.rows(number), number)


def test_norms_biases_and_vectors_have_no_decay_where_they_are_left_out() -> None:
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.LayerNorm([3, 4]), nn.Linear(4, 2))
    module.scale = nn.Parameter(torch.ones(1))
    decayed, others = decay_groups(module)
    assert [tuple(one.shape) for one in decayed] == [(3, 2, 3), (2, 4)]
    assert sorted(tuple(one.shape) for one in others) == [(1,), (2,), (3,), (3,), (3,), (3, 4), (3, 4)]
    own = config(weight_decay=0.1, no_decay_on_norms_and_biases=True)
    case = Rehearsal(Contract(KD(), toy_dataset()), teachers=1, normalised=True, optimizer=own)
    groups = case.training.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(one.ndim > 1 for one in groups[0]["params"])
    assert all(one.ndim == 1 for one in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(case.training.parameters)


def test_defaults_are_in_no_recipe_and_in_no_key() -> None:
    """Files and keys are those of before these settings existed."""
    stage = Stage(method="kd", epochs=2)
    plain = stage.model_dump(mode="json")
    assert set(plain["optimizer"]) == {
        "name", "learning_rate", "weight_decay", "momentum", "schedule", "rates", "moments"
    }  # fmt: skip
    assert "ema" not in plain
    assert stage.model_dump(mode="json", exclude_defaults=True) == {"name": "kd", "method": {}, "epochs": 2}
    given = Stage(
        method="kd",
        epochs=4,
        ema=0.9,
        optimizer=config(name="nadam", schedule="milestones", milestones=[1], warm_up=0.5, gamma=0.3),
    )
    assert StageConfig.model_validate(given.model_dump(mode="json")) == given
    assert given.model_dump(mode="json", exclude_defaults=True)["optimizer"] == {
        "name": "NAdam", "schedule": "milestones", "warm_up": 0.5, "milestones": [1.0], "gamma": 0.3
    }  # fmt: skip


def test_a_tiny_stage_has_a_schedule_that_fits() -> None:
    own = config(schedule="milestones", milestones=[1, 30], warm_up=5)
    tiny = Stage(method="kd", epochs=60, optimizer=own).tiny()
    assert (tiny.optimizer.milestones, tiny.optimizer.warm_up) == ((1.0,), 2.0)
    assert StageConfig.model_validate(tiny.model_dump(mode="json")) == tiny
    late = Stage(method="kd", epochs=60, optimizer=config(schedule="milestones", milestones=[30])).tiny()
    assert late.optimizer.schedule == "constant"

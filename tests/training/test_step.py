"""What "trained" means: what is named moves, at its own rate, in its own mode, and nothing else does."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from builders import copies, moved
from scaled import Scaled
from torch import nn

from crossdistill import Dataset, MethodConfig, OptimizerConfig, Signal
from crossdistill.methods.kd import KD
from crossdistill.testing import toy_dataset
from crossdistill.testing.ranks import compare_with_one
from crossdistill.testing.rehearsal import Contract, Rehearsal
from crossdistill.weighting import (
    AnyWeighting,
    GradNormConfig,
    LossRatioConfig,
    PCGradConfig,
    SumConfig,
    UncertaintyConfig,
)

DATA = toy_dataset()
WEIGHTINGS: list[AnyWeighting] = [SumConfig(), UncertaintyConfig(), LossRatioConfig(), GradNormConfig(), PCGradConfig()]


def rehearsal(
    method: MethodConfig | None = None, data: Dataset = DATA, *, trains: Any = "student", **stage: Any
) -> Rehearsal:
    return Rehearsal(Contract(method or KD(), data, trains), teachers=2, **stage)


def test_what_trains_is_in_train_mode_while_it_does() -> None:
    case = Rehearsal(Contract(KD(), DATA), teachers=2, normalised=True)
    student = case.job.student.network
    assert all(module.training for module in student.modules())
    before = copies(student)
    case.step(case.rows())
    assert {"module.normalise.running_mean", "module.logits.weight"} <= moved(before, student)
    case.training.eval_mode()
    assert not any(module.training for module in student.modules())
    case.training.train_mode()
    assert all(module.training for module in student.modules())


def test_a_layer_that_trains_alone_moves_alone() -> None:
    case = Rehearsal(Contract(KD(), DATA), teachers=2, normalised=True, trains=("student:hidden",))
    student = case.job.student.network
    before = copies(student)
    case.step(case.rows())
    assert moved(before, student) == {"module.hidden.weight", "module.hidden.bias"}
    assert student.module.hidden.training
    assert not student.module.normalise.training, "its statistics would move"
    assert [name for name, own in student.named_parameters() if own.requires_grad] == [
        "module.hidden.weight",
        "module.hidden.bias",
    ]
    case.training.eval_mode()
    case.training.train_mode()
    assert not student.module.normalise.training


def test_each_part_has_its_own_rate() -> None:
    rates = {"teacher-0": 0.5, "method": 0.25}
    optimizer = OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.1, rates=rates)
    case = rehearsal(Scaled(), trains="all", optimizer=optimizer)
    members = {name: network for name, (network, _) in case.job.trained.items()}
    before = {name: copies(network) for name, network in members.items()}
    (scale,) = case.job.method.parameters()
    scale_before = scale.detach().clone()
    case.step(case.rows())
    for name, network in members.items():
        rate = rates.get(name, 0.1)
        for key, parameter in network.named_parameters():
            if parameter.grad is not None:
                assert torch.allclose(before[name][key] - parameter, rate * parameter.grad, atol=1e-7), (name, key)
    assert scale.grad is not None
    assert torch.allclose(scale_before - scale, 0.25 * scale.grad, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_schedule_falls_to_zero_or_stays(name: Literal["adam", "adamw", "sgd"]) -> None:
    for schedule in ("constant", "cosine"):
        case = rehearsal(optimizer=OptimizerConfig(name=name, learning_rate=0.1, schedule=schedule), epochs=1)
        seen = []
        for number in range(case.job.order.steps):
            seen.append(case.training.optimizer.param_groups[0]["lr"])
            case.step(case.rows(number), number)
        last = case.training.optimizer.param_groups[0]["lr"]
        assert seen[0] == 0.1
        assert last == pytest.approx(0.1 if schedule == "constant" else 0.0, abs=1e-9)
        assert seen == sorted(seen, reverse=True)


def test_gradients_are_clipped_to_their_norm_and_logged_before() -> None:
    sgd = OptimizerConfig(name="sgd", momentum=0.0, learning_rate=1.0)
    free, clipped = (rehearsal(optimizer=sgd, clip_norm=norm) for norm in (None, 0.01))
    before = copies(clipped.job.student.network)
    logs = [case.step(case.rows())["gradient_norm"] for case in (free, clipped)]
    assert logs[0] > 0.1
    assert torch.equal(logs[0], logs[1])
    steps = [before[name] - value for name, value in clipped.job.student.network.state_dict().items()]
    assert torch.cat([step.flatten() for step in steps]).norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda config: config.name)
def test_a_weighting_trains_and_logs_what_it_made_of_the_terms(weighting: AnyWeighting) -> None:
    case = rehearsal(weighting=weighting)
    before = copies(case.job.student.network)
    for number in range(3):
        logs = case.step(case.rows(number), number)
        assert all(bool(value.isfinite()) for value in logs.values())
        wanted = {f"{kind}/{term}" for kind in ("raw", "weighted") for term in ("task", "kd/teacher-0", "kd/teacher-1")}
        assert set(logs) == wanted | {"loss", "gradient_norm"}
        total = sum(value for name, value in logs.items() if name.startswith("weighted/"))
        assert torch.allclose(logs["loss"], torch.as_tensor(total))
    assert len(moved(before, case.job.student.network)) > 3


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda config: config.name)
def test_micro_batches_are_the_batch_under_every_weighting(weighting: AnyWeighting) -> None:
    cases = [rehearsal(weighting=weighting, micro_batches=parts) for parts in (1, 4)]
    for number in range(3):
        for case in cases:
            case.step(case.rows(number), number)
    one, two = (case.weights() for case in cases)
    assert all(torch.allclose(value, two[name], rtol=1e-5, atol=1e-5) for name, value in one.items())
    states = [case.training.weighting.state_dict() for case in cases]
    assert all(torch.allclose(v, states[1][k], rtol=1e-4, atol=1e-5, equal_nan=True) for k, v in states[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("weighting", WEIGHTINGS[1:], ids=lambda config: config.name)
def test_two_processes_are_one_under_every_weighting(weighting: AnyWeighting) -> None:
    compare_with_one(Contract(KD(), DATA, stage={"weighting": weighting}), ranks=2, tolerance=1e-5)


def test_learned_weights_are_in_the_optimizer() -> None:
    case = rehearsal(weighting=UncertaintyConfig(), optimizer=OptimizerConfig(name="sgd", rates={"weighting": 0.3}))
    own = list(case.training.weighting.parameters())
    groups = [group for group in case.training.optimizer.param_groups if group["params"][0] is own[0]]
    assert [group["lr"] for group in groups] == [0.3]
    before = own[0].detach().clone()
    case.step(case.rows())
    assert not torch.equal(before, own[0])


@pytest.mark.parametrize(
    ("name", "weighting"), [("adam", SumConfig()), *(("sgd", weighting) for weighting in WEIGHTINGS)]
)
def test_state_that_is_taken_up_goes_on_to_the_last_bit(name: Literal["adam", "sgd"], weighting: AnyWeighting) -> None:
    optimizer = OptimizerConfig(name=name, schedule="cosine")
    whole, first, second = (rehearsal(weighting=weighting, optimizer=optimizer) for _ in range(3))
    for number in range(4):
        whole.step(whole.rows(number), number)
    for number in range(2):
        first.step(first.rows(number), number)
    second.job.student.network.load_state_dict(first.job.student.network.state_dict())
    second.training.load_state(first.training.state())
    for number in range(2, 4):
        second.step(second.rows(number), number)
    one, two = whole.weights(), second.weights()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_few_labels_do_not_make_the_task_small() -> None:
    """The mean over labelled rows stays what it is, however many other rows are in the batch."""
    data = DATA
    hidden = torch.ones(len(data), dtype=torch.bool)
    train = data.splits["train"]
    hidden[train[::4]] = False
    case = rehearsal(data=replace(data, labelled=~hidden))
    batch = case.batch(train)
    value = case.forward(batch).terms["task"].reduced(len(train))
    labelled = train[::4]
    logits = case.job.student(data.batch(labelled)).need(Signal.LOGITS)
    wanted = nn.functional.cross_entropy(logits, data.targets[labelled])
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)

"""A method in a training loop of one's own: every one of them, its first loss as in a run, under autocast and DDP."""

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from facts import raises, warned
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crossdistill import Dataset, Distiller, Network
from crossdistill.batch import MISSING_TARGET
from crossdistill.errors import CrossdistillError, SettingError, ShapeError
from crossdistill.method import STUDENT, MethodConfig
from crossdistill.methods import CRD, KD, METHODS, Route, Salience, Specialise
from crossdistill.runtime.hashing import derived_seed
from crossdistill.testing import TOY_MAPS, toy_dataset, toy_map_models, toy_models
from crossdistill.testing.rehearsal import Contract, Rehearsal

DATA = toy_dataset(("first", "second", "third"))
MAPS = toy_dataset(TOY_MAPS)
ON_MAPS = {name for name, method in METHODS.items() if method.acts_on == "maps"}
SETTINGS: Mapping[str, MethodConfig] = {"crd": CRD(negatives=32, width=16), "salience": Salience(repeats=1)}

pytestmark = pytest.mark.filterwarnings("ignore:.*set_epoch:UserWarning")


def members(name: str) -> tuple[Dataset, Network, dict[str, Network]]:
    data = MAPS if name in ON_MAPS else DATA
    (_, student), *teachers = (toy_map_models(data, 2) if name in ON_MAPS else toy_models(data, 2)).items()
    for number in (2, 1):
        try:
            Rehearsal(Contract(settings(name), data), teachers=number)
        except CrossdistillError:
            continue
        return data, student, dict(teachers[:number])
    return data, student, dict(teachers)


MEASURES = ("ofd", "salience", "translate")
"""Methods that look at the training data once before their first step."""


def settings(name: str) -> MethodConfig:
    # A loop of one's own names no domains.
    return SETTINGS.get(name) or METHODS[name](**({"routing": "all"} if name == "multi-distillation" else {}))


def loader(data: Dataset, size: int = 24) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    rows = data.splits["train"].split(size)
    return [({name: value[one] for name, value in data.inputs.items()}, data.targets[one], one) for one in rows]


def distiller_of(name: str, **given: Any) -> tuple[Distiller, Dataset]:
    data, student, teachers = members(name)
    inputs, targets, _ = loader(data)[0]
    return Distiller(student, teachers, settings(name), example=(inputs, targets), data=data, **given), data


@pytest.mark.parametrize("name", METHODS)
def test_every_method_steps_in_a_loop_of_ones_own(name: str) -> None:
    distiller, data = distiller_of(name)
    batches = loader(data)
    if name in MEASURES:
        with raises(SettingError, "measure"):
            distiller(*batches[0][:2], ids=batches[0][2])
        distiller.measure((inputs, targets) for inputs, targets, _ in batches)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.01)
    frozen = list(distiller._frozen)
    before = [value.clone() for module in frozen for value in module.state_dict().values()]
    for inputs, targets, ids in batches[:3]:
        loss = distiller(inputs, targets, ids=ids)
        assert loss.shape == ()
        assert bool(loss.isfinite())
        assert torch.allclose(loss, torch.stack(list(distiller.terms.values())).sum())
        optimizer.zero_grad()
        loss.backward()
        assert any(one.grad is not None and bool(one.grad.any()) for one in distiller.parameters())
        optimizer.step()
    after = [value for module in frozen for value in module.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert not any(part.training for module in frozen for part in module.modules())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_steps_under_autocast(name: str) -> None:
    distiller, data = distiller_of(name)
    inputs, targets, ids = loader(data)[0]
    if name in MEASURES:
        distiller.measure([(inputs, targets)])
    with torch.no_grad():
        whole = distiller(inputs, targets, ids=ids).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = distiller(inputs, targets, ids=ids)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole, rel=0.2, abs=0.05)
    assert all(bool(one.grad.isfinite().all()) for one in distiller.parameters() if one.grad is not None)


@pytest.mark.parametrize("name", ["kd", "dkd", "crd", "rkd", "at", "collaborate", "specialise", "route"])
def test_the_first_loss_is_that_of_a_run(name: str) -> None:
    data, student, teachers = members(name)
    trains = {"collaborate": "all", "specialise": "method"}.get(name, "student")
    given = {"student-network": student, **teachers}
    case = Rehearsal(Contract(settings(name), data, trains, given), teachers=len(teachers))
    rows = case.rows()
    wanted = case.step(rows)["loss"]
    inputs = {modality: value[rows] for modality, value in data.inputs.items()}
    torch.manual_seed(derived_seed("method", 0, "rehearsal"))
    distiller = Distiller(student, teachers, settings(name), example=inputs, data=data)
    found = distiller(inputs, data.targets[rows], ids=rows)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-6, atol=1e-6)


def plain(inputs: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 4))


def rows(number: int = 16) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    return torch.randn(number, 6, generator=source), torch.randint(4, (number,), generator=source)


def test_modules_and_a_name_are_enough() -> None:
    student, teacher = plain(), plain()
    distiller = Distiller(student, teacher, KD(decay_every=None))
    assert distiller.student is student
    assert len(list(distiller.parameters())) == len(list(student.parameters()))
    inputs, targets = rows()
    loss = distiller(inputs, targets)
    logits, guide = student(inputs), teacher(inputs)
    kl = nn.functional.kl_div(
        (logits / 4).log_softmax(1), (guide / 4).log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(loss, 0.5 * cross_entropy(logits, targets) + 0.5 * 16 * kl)
    assert torch.equal(distiller.outputs.logits, logits)
    assert set(distiller.terms) == {"task", "kd/teacher"}
    assert set(distiller.state_dict()) == {f"student.{name}" for name in student.state_dict()}


def test_teachers_are_one_or_a_sequence_or_a_mapping() -> None:
    for teachers, names in (
        (plain(), ["teacher"]),
        ([plain(), plain()], ["teacher-0", "teacher-1"]),
        ({"a": plain(), "b": plain()}, ["a", "b"]),
    ):
        distiller = Distiller(plain(), teachers, KD(decay_every=None))
        distiller(*rows())
        assert list(distiller.terms) == ["task", *(f"kd/{name}" for name in names)]


def test_rows_without_a_target_have_no_task() -> None:
    distiller = Distiller(plain(), plain(), KD(decay_every=None))
    inputs, targets = rows()
    distiller(inputs)
    assert distiller.terms["task"] == 0
    distiller(inputs, targets)
    whole = distiller.terms["task"]
    targets[8:] = MISSING_TARGET
    distiller(inputs, targets)
    assert 0 < distiller.terms["task"] < whole


def test_a_frozen_teacher_stays_in_eval_mode_and_without_gradient() -> None:
    teacher = nn.Sequential(plain(), nn.BatchNorm1d(4), nn.Dropout(0.5))
    distiller = Distiller(plain(), teacher, KD(decay_every=None))
    distiller.train()
    teacher.train()
    before = teacher[1].running_mean.clone()
    distiller(*rows()).backward()
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher[1].running_mean, before)
    assert all(one.grad is None and not one.requires_grad for one in teacher.parameters())
    assert distiller.student.training


def test_building_leaves_modes_as_they_are() -> None:
    student = nn.Sequential(plain(), nn.BatchNorm1d(4))
    student[1].eval()
    before = student[1].running_mean.clone()
    distiller = Distiller(student, plain(), KD(decay_every=None), example=rows()[0])
    assert (student.training, student[1].training) == (True, False)
    assert torch.equal(student[1].running_mean, before)
    distiller.eval()
    distiller(*rows())
    assert not any(module.training for module in distiller.modules())


def test_to_moves_frozen_teachers_too() -> None:
    teacher = plain()
    distiller = Distiller(plain(), teacher, KD(decay_every=None))
    distiller(*rows())
    distiller.double()
    assert {one.dtype for one in teacher.parameters()} == {torch.float64}
    inputs, targets = rows()
    assert bool(distiller(inputs.double(), targets).isfinite())


def test_a_method_that_trains_its_teachers_offers_their_parameters() -> None:
    distiller = Distiller(plain(), {"a": plain()}, "dml", example=rows()[0])
    assert len(list(distiller.parameters())) == 8
    assert {name.partition(".")[0] for name in distiller.state_dict()} == {"student", "teachers"}
    distiller(*rows()).backward()
    assert all(one.grad is not None for one in distiller.parameters())


def test_trains_names_what_moves() -> None:
    student = plain()
    distiller = Distiller(student, {"a": plain()}, KD(decay_every=None), trains=())
    assert not list(distiller.parameters())
    assert not any(one.requires_grad for one in student.parameters())
    with raises(SettingError, "'b'", "a, student"):
        Distiller(plain(), {"a": plain()}, trains=("b",))


def test_stages_follow_each_other() -> None:
    """MST-Distill in loops of one's own: masks on frozen teachers, which then teach."""
    data, student, teachers = members("specialise")
    inputs, targets, _ = loader(data)[0]
    masks = Distiller(student, teachers, Specialise(), trains=(), example=inputs)
    assert all(name.startswith("method.") for name, _ in masks.named_parameters())
    masks(inputs, targets).backward()
    masked = masks.next_teachers()
    with raises(SettingError, "'student'", "requires_grad_(True)"):
        Distiller(student, masked, Route(k=2))
    with raises(SettingError, "Masked"):
        Distiller(plain(), masked, "dml")
    student.module.requires_grad_(True)
    route = Distiller(student, masked, Route(k=2), example=inputs)
    route.set_epoch(0)
    loss = route(inputs, targets)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(one.grad is not None for one in route.method.parameters())


def test_a_method_with_parameters_needs_its_example_before_the_optimizer_is_made() -> None:
    data, student, teachers = members("rkd")
    distiller = Distiller(student, teachers, "vid")
    torch.optim.SGD(distiller.parameters(), 0.1)
    inputs, targets, _ = loader(data)[0]
    with raises(SettingError, "vid", "example="):
        distiller(inputs, targets)
    other = Distiller(student, teachers, "vid")
    other(inputs, targets)
    assert any(name.startswith("method.") for name, _ in other.named_parameters())


def test_crd_says_what_it_needs() -> None:
    data, student, teachers = members("crd")
    inputs, targets, _ = loader(data)[0]
    own = CRD(negatives=8, width=8)
    with raises(SettingError, "crd", "data=", "targets=", "ids="):
        Distiller(student, teachers, own, example=inputs)
    with raises(SettingError, "data", "targets", "rows"):
        Distiller(student, teachers, own, data=data, rows=3)
    everything = data.targets[data.splits["train"]]
    distiller = Distiller(student, teachers, own, example=inputs, targets=everything)
    with raises(SettingError, "ids="):
        distiller(inputs, targets)
    with raises(ShapeError, f"0 to {len(everything) - 1}"):
        distiller(inputs, targets, ids=torch.arange(len(targets)) + len(everything))
    distiller(inputs, targets, ids=torch.arange(len(targets))).backward()


def test_state_is_moved_by_the_next_call_and_before_it_is_saved() -> None:
    data, student, teachers = members("crd")
    inputs, targets, ids = loader(data)[0]
    torch.manual_seed(0)
    distiller = Distiller(student, teachers, CRD(negatives=8, width=8), example=inputs, data=data)

    def memory() -> Tensor:
        return torch.cat([value.flatten() for name, value in distiller.named_buffers() if name.endswith("student")])

    start = memory().clone()
    distiller(inputs, targets, ids=ids).backward()
    assert torch.equal(memory(), start), "the graph of this call reads it"
    for move in (lambda: distiller(inputs, targets, ids=ids).backward(), distiller.state_dict, distiller.eval):
        distiller.train()
        distiller(inputs, targets, ids=ids).backward()
        before = memory().clone()
        move()
        assert not torch.equal(memory(), before)
    with torch.no_grad():
        before = memory().clone()
        distiller.train()(inputs, targets, ids=ids)
        distiller.after_step()
        assert torch.equal(memory(), before), "a pass without gradient is no step"


def test_a_saved_distiller_goes_on_elsewhere() -> None:
    inputs, targets, ids = loader(DATA)[0]
    own = CRD(negatives=8, width=8)
    one, other, third = (_seeded(members("crd"), own, inputs) for _ in range(3))
    one(inputs, targets, ids=ids).backward()
    for each in (other, third):
        each.load_state_dict(one.state_dict())
    wanted = {name: value.clone() for name, value in one.state_dict().items()}
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())
    assert torch.equal(other.eval()(inputs, targets, ids=ids), third.eval()(inputs, targets, ids=ids))


def _seeded(given: tuple[Dataset, Network, dict[str, Network]], method: MethodConfig, example: Any) -> Distiller:
    """What a method draws at its start comes from torch's own generator."""
    data, student, teachers = given
    torch.manual_seed(0)
    return Distiller(student, teachers, method, example=example, data=data)


def test_weights_follow_the_epoch_and_a_loop_that_says_none_is_warned() -> None:
    distiller = Distiller(plain(), plain(), KD(alpha=0.5, decay=0.5, decay_every=1))
    with warned(UserWarning, "0.5 to 1", "set_epoch"):
        distiller(*rows())
    first = distiller.terms["kd/teacher"]
    distiller.set_epoch(1)
    distiller(*rows())
    torch.testing.assert_close(distiller.terms["kd/teacher"], first / 2)
    distiller(*rows(), epoch=2)
    torch.testing.assert_close(distiller.terms["kd/teacher"], first / 4)


@pytest.mark.filterwarnings("error")
def test_a_loop_that_says_its_epochs_is_not_warned() -> None:
    distiller = Distiller(plain(), plain(), "kd")
    distiller(*rows(), epoch=0)


@pytest.mark.parametrize(
    ("student", "teachers", "method", "facts"),
    [
        (plain(), plain(), "kdd", ("'kd'",)),
        (plain(), {STUDENT: plain()}, "kd", ("'student'",)),
        (plain(), {"a": plain()}, "at", ("taps",)),
        (Network(plain(), "x"), Network(plain(), "y"), "kd", ("x, y", "mapping")),
        (plain(), nn.Linear(6, 5), "kd", ("logits",)),
    ],
)
def test_what_does_not_fit_is_said(student: nn.Module, teachers: Any, method: str, facts: tuple[str, ...]) -> None:
    with raises(CrossdistillError, *facts):
        Distiller(student, teachers, method)(*rows())


def test_several_modalities_need_networks_that_say_what_they_read() -> None:
    inputs, targets = rows()
    distiller = Distiller(plain(), plain(), "kd")
    with raises(SettingError, "'student'", "reads=", "a, b"):
        distiller({"a": inputs, "b": inputs}, targets)


def _train(rank: int, ranks: int, folder: str, name: str) -> dict[str, Tensor]:
    """Some steps on each process's rows; the same steps on all of them where there is one process."""
    torch.manual_seed(0)
    data, student, teachers = members(name)
    inputs, targets, _ = loader(data)[0]
    distiller = Distiller(student, teachers, settings(name), example=inputs, data=data)
    distiller.set_epoch(0)
    model: nn.Module = distiller
    if ranks > 1:
        model = nn.parallel.DistributedDataParallel(distiller, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for number in range(4):
        inputs, targets, ids = loader(data)[number]
        # Shares of different sizes.
        own = slice(None) if ranks == 1 else (slice(0, 16), slice(16, None))[rank]
        optimizer.zero_grad()
        model({key: value[own] for key, value in inputs.items()}, targets[own], ids=ids[own]).backward()
        optimizer.step()
    return {key: value.clone() for key, value in distiller.state_dict().items() if value.is_floating_point()}


def _process(rank: int, folder: str, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: _train(rank, 2, folder, name) for name in names}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_under_ddp_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The processes import this module by its name.
    monkeypatch.syspath_prepend(Path(__file__).parent)
    names = ("kd", "rkd", "crd")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, str(tmp_path), names)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(100)
    assert [one.exitcode for one in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in names:
        alone = _train(0, 1, "", name)
        for key, value in alone.items():
            torch.testing.assert_close(first[name][key], second[name][key], rtol=0, atol=0, msg=f"{name}: {key}")
            torch.testing.assert_close(first[name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")

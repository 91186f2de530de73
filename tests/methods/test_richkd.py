"""RichKD: its terms by hand and against published vectors, what each variant reads, and banks of the parts alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_recipes import planned, recipe, stage
from builders import rows_of
from facts import raises
from stand_ins import ROWS, Cast, data_of
from torch import Tensor
from torch.nn import functional

from crossdistill import Batch, Network, OutputSpec, Signal, losses
from crossdistill.errors import ApplicabilityError, SettingError
from crossdistill.method import DataSpec, Method, MethodConfig, Progress
from crossdistill.methods import KD, RichKD, RichKDF, RichKDL
from crossdistill.methods.richkd import RichKDConfig
from crossdistill.nets.contrast import memory_contrast
from crossdistill.nets.memory import Memory
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.progress import Quiet
from crossdistill.testing import FakeTeacher


def wave(start: float, amplitude: float) -> Tensor:
    """The published inputs: amplitude · sin(start + 0.37 k + 0.001 k²), row by row."""
    k = torch.arange(40, dtype=torch.float64)
    return (amplitude * torch.sin(start + 0.37 * k + 0.001 * k * k)).view(4, 10)


STUDENT, TEACHER, COSINES = wave(0.1, 3), wave(1.1, 5), 0.2 + wave(2.1, 0.05)
TARGETS = torch.tensor([3, 0, 7, 9])
MINE = OutputSpec(logits=(4,), embedding=(5,))
PARTS = {"cnn": OutputSpec(logits=(4,), embedding=(6,)), "clip": OutputSpec(logits=(4,), embedding=(3,))}
FEW: dict[str, Any] = {"negatives": 4, "width": 8, "contrast_temperature": 0.5}


def cast_of(config: MethodConfig, **more: Any) -> Cast:
    return Cast(config, PARTS, MINE, **more)


def toy(config: MethodConfig, scale: float = 1.0) -> dict[str, float]:
    """The terms on the vectors of the specification, in float64."""
    spec = OutputSpec(logits=(10,))
    batch = Batch({}, torch.arange(4), targets=TARGETS)
    given = {"student": STUDENT, "cnn": TEACHER, "clip": scale * COSINES}
    fakes = {name: FakeTeacher(name, spec, given={Signal.LOGITS: rows}) for name, rows in given.items()}
    student, names = fakes.pop("student"), ("cnn",) if config.name == "kd" else ("cnn", "clip")
    teachers = {name: fakes[name] for name in names}
    method = config.build(spec, dict.fromkeys(teachers, spec), DataSpec(4, 10, TARGETS))
    step = method(batch, student, teachers, Progress())
    values = {name: float(term.value.mean() * term.weight) for name, term in step.terms.items()}
    return values | {"total": float(step.loss(4))}


def test_golden_vectors() -> None:
    found = toy(RichKDL())
    assert found == pytest.approx(
        {"task": 4.7618827582, "richkd-l/logits": 3 * 1.6722710277, "total": 9.7786958413}, abs=1e-8
    )
    assert toy(RichKDL(), 100.0)["richkd-l/logits"] == pytest.approx(3 * 3.5848493677, abs=1e-8)
    # A part's temperature is the inverse of its scale.
    assert toy(RichKDL(temperatures={"clip": 0.01}))["total"] == pytest.approx(toy(RichKDL(), 100.0)["total"])


def test_with_unscaled_cosines_it_is_kd_of_a_flatter_teacher() -> None:
    """The release fuses raw cosines: within 1 %, that is KD from 0.7 times the teacher's logits."""
    flat = toy(RichKDL(coefficients={"cnn": 1.0}, temperatures={"cnn": 1 / 0.7}))
    assert flat["richkd-l/logits"] == pytest.approx(3 * 1.6561914043, abs=1e-8)
    assert toy(RichKDL())["richkd-l/logits"] == pytest.approx(flat["richkd-l/logits"], rel=0.01)
    assert toy(KD(temperature=3.0, fixed=(1.0, 3.0)))["task"] == pytest.approx(flat["task"])


def test_the_features_by_hand() -> None:
    cast = cast_of(RichKD(**FEW, draw="each", alpha=0.6, alpha_features=0.9))
    assert cast.weights() == {"task": 1.0, "richkd/logits": 3.0, "richkd/features": 0.8}
    method: Any = cast.method
    mine = method.mine(cast.outputs("student").need(Signal.EMBEDDING))
    units = []
    for number, name in enumerate(PARTS):
        feature = cast.outputs(name).need(Signal.EMBEDDING)
        layer = method.theirs.maps[number]
        units.append(functional.normalize(feature @ layer.weight.T + layer.bias, dim=1))
    fused = functional.normalize(0.9 * units[0] + 0.1 * units[1], dim=1)
    memory = method.comparison.memory
    candidates = memory.candidates(torch.arange(ROWS), 4, step=0)
    wanted = torch.zeros(ROWS)
    for anchors, bank in ((mine, memory.teacher), (fused, memory.student)):
        logits = losses.contrast_logits(anchors, bank, candidates, 0.5)
        wanted = wanted + losses.contrast_nce(logits, losses.log_normaliser(logits, ROWS), ROWS)
    torch.testing.assert_close(cast.value("richkd/features"), wanted)
    z = [cast.logits(name) for name in ("student", "cnn", "clip")]
    wanted = losses.distillation_kl(z[0], 0.6 * z[1] + 0.4 * z[2], 3.0)
    torch.testing.assert_close(cast.value("richkd/logits"), wanted)


def test_methods_on_logits_take_the_same_target() -> None:
    kd = cast_of(KD(combine="logits", teacher_weights={"cnn": 0.7, "clip": 0.3}, temperature=3.0))
    torch.testing.assert_close(kd.value("kd/logits"), cast_of(RichKDL()).value("richkd-l/logits"))


def test_each_variant_reads_and_builds_only_what_it_needs() -> None:
    logits, features = Signal.LOGITS, Signal.EMBEDDING
    wanted: Mapping[type[RichKDConfig], set[Signal]] = {
        RichKD: {logits, features},
        RichKDL: {logits},
        RichKDF: {features},
    }
    for kind, signals in wanted.items():
        cast = cast_of(kind(**FEW))
        assert {name: set(needs) for name, needs in cast.method.needs().items()} == {
            "student": {logits, *signals},
            "cnn": signals,
            "clip": signals,
        }
        branches = {"logits": logits, "features": features}
        assert set(cast.weights()) == {"task", *(f"{kind().name}/{b}" for b, own in branches.items() if own in signals)}
        assert bool(list(cast.method.buffers())) == (kind is not RichKDL)
    # No logits at all, as those of a bank of embeddings.
    Cast(RichKDF(**FEW), {name: replace(spec, logits=None) for name, spec in PARTS.items()}, MINE).step()
    assert set(cast_of(RichKDL(weight_task=0)).weights()) == {"richkd-l/logits"}


def test_the_memory_moves_after_the_step() -> None:
    cast = cast_of(RichKDF(**FEW))
    memory = cast.method.get_submodule("comparison.memory")
    assert isinstance(memory, Memory)
    before, batch = memory.teacher.clone(), rows_of().select(torch.tensor([1, 4, 6]))
    step = cast.step(batch)
    assert torch.equal(memory.teacher, before)
    cast.method.after_step(batch, step)
    assert (memory.teacher != before).any(1).nonzero().flatten().tolist() == [1, 4, 6]
    assert bool(memory.normaliser.isfinite().all())


def trained(config: RichKDConfig, steps: int = 30) -> tuple[float, float, Method]:
    """The loss of features before and after training the maps alone."""
    cast = cast_of(config)
    optimizer = torch.optim.SGD(cast.method.parameters(), 0.3)
    found = []
    for number in range(steps):
        step = cast.step(progress=Progress(0, 1, number, steps))
        loss = step.terms["richkd-f/features"].value.mean()
        found.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cast.method.after_step(rows_of(), step)
    return sum(found[1:6]) / 5, found[-1], cast.method


@pytest.mark.parametrize("kind", ["crd", "mse", "cosine", "infonce", "queue"])
def test_every_comparison_learns_and_none_collapses(kind: Any) -> None:
    first, last, method = trained(RichKDF(**FEW, feature_loss=kind))
    assert last < first
    theirs: Any = method.get_submodule("theirs")
    assert bool(list(theirs.parameters())) == (kind not in ("mse", "cosine"))
    assert method.batch_relational == (kind not in ("mse", "cosine"))
    fakes = {name: FakeTeacher(name, spec, signals={Signal.EMBEDDING})(rows_of()) for name, spec in PARTS.items()}
    features = [(one.need(Signal.EMBEDDING), None) for one in fakes.values()]
    vectors = theirs(features, torch.full((2, ROWS), 0.5))
    assert float((vectors @ vectors.T).detach().min()) < 0.9, "all rows have the same vector"


def test_the_queue_is_the_last_vectors_of_other_rows() -> None:
    cast = cast_of(RichKDF(feature_loss="queue", negatives=5, width=8))
    queue: Any = cast.method.get_submodule("comparison")
    assert bool((cast.value("richkd-f/features") > 0).all()), "random vectors are negatives at first"
    for rows in ([0, 1, 2], [3, 4, 5], list(range(8))):
        batch = rows_of().select(torch.tensor(rows))
        cast.method.after_step(batch, cast.step(batch))
    assert sorted(queue.index.tolist()) == [3, 4, 5, 6, 7]
    torch.testing.assert_close(queue.vectors.norm(dim=1), torch.ones(5))


def test_shared_negatives_are_those_of_each_row_where_all_others_are_drawn() -> None:
    labels = torch.arange(12) % 3
    torch.manual_seed(0)
    memory = Memory(labels, 6, 0.5)
    index = torch.tensor([0, 5, 7, 11])
    sides = functional.normalize(torch.randn(2, 4, 6), dim=2)
    each, shared = (
        memory_contrast(memory, index, tuple(sides), 8, 0.3, 0, lambda rows: rows, draw=draw)
        for draw in ("each", "shared")
    )
    torch.testing.assert_close(each, shared)


def test_shared_negatives_are_of_other_classes_and_drawn_alike() -> None:
    labels = torch.tensor([0] * 4 + [1] * 3 + [2] * 5)
    memory, index, counts = Memory(labels, 4, 0.5), torch.arange(12), torch.zeros(12, 12)
    for number in range(1000):
        drawn, kept, count = memory.shared(index, 5, number)
        assert count == 5
        assert kept.sum(1).tolist() == [5] * 12
        assert not bool((labels[index].unsqueeze(1) == labels[drawn])[kept].any())
        counts.index_add_(1, drawn, kept.float())
    for row, others in ((0, 8), (4, 9), (7, 7)):
        expected = 1000 * 5 / others
        drawn_of = counts[row][labels != labels[row]]
        assert float(((drawn_of - expected) ** 2 / expected).sum()) < 30
    everything = memory.shared(index, 99, 0)
    assert everything[2] == 7


def test_coefficients_name_teachers() -> None:
    assert RichKDL(main="clip").fusion(("cnn", "clip")).coefficients == {"clip": 0.7, "cnn": pytest.approx(0.3)}
    three = RichKDL(alpha=0.5).fusion(("a", "b", "c")).coefficients
    assert three == {"a": 0.5, "b": 0.25, "c": 0.25}
    for wrong in (RichKDL(main="cnm"), RichKDL(coefficients={"cnm": 1}), RichKDL(temperatures={"cnm": 1})):
        with raises(SettingError, "'cnm'", "'cnn'"):
            cast_of(wrong)
    dense = OutputSpec(logits=(4, 2, 2), embedding=(3,))
    with raises(ApplicabilityError, "(4, 2, 2)"):
        RichKDL().build(dense, {"cnn": dense, "clip": dense}, data_of())
    with raises(ApplicabilityError, "(5,)", "(4,)"):
        RichKDL().build(MINE, PARTS | {"clip": OutputSpec(logits=(5,))}, data_of())
    with raises(ApplicabilityError, "cnn", "teachers.clip=transformers:FOLDER"):
        RichKDL().build(MINE, {"cnn": PARTS["cnn"]}, data_of())


def test_another_coefficient_needs_no_other_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    plain = Network.__call__

    def counted(self: Network, *given: Any, **named: Any) -> Any:
        passes.append(self.name)
        return plain(self, *given, **named)

    found = []
    for alpha in (0.7, 0.2):
        plan = planned(recipe(stage(RichKDL(alpha=alpha), "banked")))
        monkeypatch.setattr(Network, "__call__", counted)
        passes.clear()
        job, _ = attach_banks(plan.jobs[0], plan.recipe.bank, tmp_path, Devices(torch.device("cpu")), Quiet())
        batch = job.dataset.batch(job.dataset.splits["train"][:10])
        parts = {name: teacher(batch) for name, teacher in job.teachers.items()}
        found.append((bool(passes), job.method.fusion.logits(parts, 10)[0]))
        monkeypatch.undo()
    assert [computed for computed, _ in found] == [True, False]
    assert not torch.equal(found[0][1], found[1][1])
    assert len(list(tmp_path.iterdir())) == 2

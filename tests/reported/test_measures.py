"""What a run says of itself: teachers before they teach, rows behind accuracies, memory, time, and tables of runs."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard, toy_recipe
from safetensors.torch import load_file
from torch import nn

from crossdistill import Dataset, Network, NetworkConfig, Recipe, Report, Stage, run
from crossdistill.method import STUDENT
from crossdistill.methods import C2KD, DML, KD, Collaborate
from crossdistill.planning.plan import prepare
from crossdistill.runtime.distributed import Devices
from crossdistill.testing import toy_dataset, toy_models
from crossdistill.training.evaluation import evaluate_folder
from crossdistill.training.teacher_accuracy import above_chance

CPU = torch.device("cpu")


def small(*stages: Stage, data: Dataset | None = None, teachers: int = 1, **given: Any) -> Recipe:
    return toy_recipe(*stages, data=toy_dataset(noise=0.5) if data is None else data, teachers=teachers, **given)


def trained_first(data: Dataset | None = None) -> Recipe:
    first = Stage(method="supervised", learner="teacher-0", epochs=8, batch_size=24)
    return small(first, Stage(method="kd", epochs=2, batch_size=24), data=data)


def outcome(out: Path, stage: str) -> dict[str, Any]:
    return json.loads((out / "stages" / stage / "outcome.json").read_text())


def test_a4_every_teacher_is_measured_before_it_teaches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    display = Heard()
    run(trained_first(), tmp_path / "run", display=display)
    (name,) = [path.name for path in (tmp_path / "run" / "stages").iterdir() if path.name.endswith("-kd")]
    found = outcome(tmp_path / "run", name)["teachers"]["teacher-0"]
    data = toy_dataset(noise=0.5)
    targets = data.targets[data.splits["validation"]]
    assert found["rows"] == len(targets)
    assert found["chance"] == float(targets.bincount().max()) / len(targets)
    assert found["accuracy"] > 0.6
    (line,) = [line for line in display.lines if "teacher-0 accuracy" in line]
    assert f"{found['accuracy']:.3f} on {len(targets)} rows" in line
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert outcome(tmp_path / "run", "00-supervised-teacher-0")["teachers"] == {}


def test_a4_a_teacher_that_nobody_trained_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = toy_dataset({"image": (1, 8, 8), "audio": (1, 32, 32)}, rows=100, classes=10)
    recipe = Recipe(
        data=data,
        student=NetworkConfig(model="small-image"),
        teachers={"mm": NetworkConfig(model="small-mm")},
        stages=(Stage(method="kd", epochs=1),),
    )
    run(recipe, tmp_path / "run")
    (record,) = [record for record in caplog.records if "chance" in record.getMessage()]
    said = record.getMessage()
    assert all(part in said for part in ("'mm'", "20 rows", "no earlier stage trains", "weights", "supervised"))


class Turned(nn.Module):
    """A network whose classes are numbered otherwise."""

    def __init__(self, inner: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.inner, self.order = inner, list(order)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits = self.inner(*inputs)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits[:, self.order]


@pytest.mark.parametrize(
    ("right", "rows", "chance", "wanted"),
    [
        (11, 100, 0.11, False),
        (16, 100, 0.11, False),
        (18, 100, 0.11, True),
        (30, 1000, 0.5, False),
        (530, 1000, 0.5, True),
        (1, 2, 0.5, False),
        (5, 5, 1.0, True),
    ],
)
def test_a4_chance_is_what_guessing_reaches(right: int, rows: int, chance: float, wanted: bool) -> None:
    assert above_chance(right, rows, chance) is wanted


def test_a4_measuring_moves_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run without the measurement, to the last bit; dropout and modes are as they were."""
    data = toy_dataset(labelled=0.5)
    made = []
    for name in ("with", "without"):
        stages = (Stage(method="collaborate", epochs=1), Stage(method="kd", epochs=1))
        recipe = toy_recipe(*stages, data=data, normalised=True)
        if name == "without":
            monkeypatch.setattr("crossdistill.training.teacher_accuracy.TeacherCheck.measure", lambda *_: {})
        run(recipe, tmp_path / name)
        made.append((tmp_path / name / "metrics.jsonl").read_bytes())
    assert made[0] == made[1]


def test_a4_a_teacher_is_measured_once_and_again_after_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossdistill.training import teacher_accuracy

    seen: list[int] = []
    plain = teacher_accuracy.predict
    monkeypatch.setattr(teacher_accuracy, "predict", lambda *given, **named: seen.append(1) or plain(*given, **named))
    run(
        small(
            Stage(name="one", method="kd", epochs=1),
            Stage(name="two", method="kd", epochs=1),
            Stage(name="more", method="supervised", learner="teacher-0", epochs=1),
            Stage(name="three", method="kd", epochs=1),
        ),
        tmp_path / "run",
    )
    assert len(seen) == 2
    one, two, three = (outcome(tmp_path / "run", name)["teachers"] for name in ("00-one", "01-two", "03-three"))
    assert one == two != three


@pytest.mark.parametrize("method", [Collaborate(), DML(), C2KD()])
def test_a4_methods_that_train_their_teachers_do_so_by_default(method: Any) -> None:
    data = toy_dataset()
    by_default = prepare(small(Stage(method=method, epochs=1), teachers=2), data, CPU).jobs[0]
    names = ("teacher-0", "teacher-1")
    named = prepare(small(Stage(method=method, epochs=1, trains=(STUDENT, *names)), teachers=2), data, CPU).jobs[0]
    alone = prepare(small(Stage(method=method, epochs=1, trains=(STUDENT,)), teachers=2), data, CPU).jobs[0]
    assert set(by_default.trained) == set(named.trained) == {"student-network", *names}
    assert by_default.key == named.key
    assert set(alone.trained) == {"student-network"}
    one = prepare(small(Stage(method=method, epochs=1, teachers=names[:1]), teachers=2), data, CPU).jobs[0]
    assert set(one.trained) == {"student-network", "teacher-0"}
    assert set(prepare(small(Stage(method=KD(), epochs=1)), data, CPU).jobs[0].trained) == {"student-network"}


def test_a4_a_network_that_trains_by_default_is_copied(tmp_path: Path) -> None:
    recipe = small(Stage(method="collaborate", epochs=1), teachers=1)
    teacher = recipe.teachers["teacher-0"]
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    run(recipe, tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert (tmp_path / "run" / "stages" / "00-collaborate" / "teacher-0.safetensors").is_file()


def lacking() -> Dataset:
    """A modality is absent in some rows, and some rows have no label."""
    return toy_dataset(noise=0.5, without_target=0.3, absent={"second": 0.4})


def test_a8_every_accuracy_says_its_rows(tmp_path: Path) -> None:
    data = lacking()
    (_, student), *_ = toy_models(data, 1).items()
    both = next(iter(toy_models(data, 2).values()))
    recipe = trained_first(data)
    report = run(recipe, tmp_path / "run")
    test = data.splits["test"]
    known = data.targets[test] >= 0
    networks = {"chance": (), "kd": student.reads, "teacher:teacher-0": recipe.teachers["teacher-0"].reads}
    assert any("second" in reads for reads in networks.values()), both.reads
    for row in report.rows:
        there = known.clone()
        for modality in networks[row.method]:
            there &= data.present.get(modality, torch.ones(len(data), dtype=torch.bool))[test]
        assert row.test_rows == int(there.sum()), row.method
    assert len({row.test_rows for row in report.rows}) > 1
    for text in (report.markdown(), (tmp_path / "run" / "student" / "README.md").read_text()):
        assert "| rows |" in text
        assert all(f"| {row.test_rows} |" in text for row in report.rows)
    with np.load(tmp_path / "run" / "predictions.npz") as predictions:
        assert len(predictions["ids"]) == report.rows[-1].test_rows


def test_a8_labels_are_counted_over_all_training_rows(tmp_path: Path) -> None:
    data = lacking()
    report = run(trained_first(data), tmp_path / "run")
    train = data.splits["train"]
    fraction = float((data.targets[train] >= 0).double().mean())
    assert fraction < 0.8
    assert {row.labelled for row in report.rows} == {round(fraction, 4)}
    half = replace(data, labelled=torch.arange(len(data)) % 2 == 0)
    report = run(trained_first(half), tmp_path / "half")
    usable = float(((data.targets >= 0) & (torch.arange(len(data)) % 2 == 0))[train].double().mean())
    assert report.rows[-1].labelled == round(usable, 4)
    assert report.rows[0].labelled == round(fraction, 4)


def test_a8_eval_says_how_many_of_the_rows(digits: None, tmp_path: Path) -> None:
    from crossdistill.recipes import make

    recipe = make("av-digits/supervised", [], 0).tiny()
    run(recipe, tmp_path / "run")
    found = evaluate_folder(tmp_path / "run", recipe, "test")
    assert found["rows"] == found["of"] == 200


def test_a12_memory_is_the_peak_of_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading, banks, training, the final test: the largest of their peaks is what the table says."""
    peaks = iter([100.0, 300.0, 200.0, 700.0])
    resets: list[int] = []
    monkeypatch.setattr(Devices, "reset_peak", lambda self: resets.append(1))
    monkeypatch.setattr(Devices, "peak_memory", lambda self: next(peaks))
    report = run(trained_first(), tmp_path / "run")
    assert report.rows[-1].peak_memory_mb == 700.0
    assert len(resets) == 4
    assert [outcome(tmp_path / "run", name)["peak_memory_mb"] for name in ("00-supervised-teacher-0", "01-kd")] == [
        300.0,
        200.0,
    ]


def test_a12_a_stages_peak_holds_its_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdistill.training import runner

    order: list[str] = []
    plain, reset = runner.attach_banks, Devices.reset_peak
    monkeypatch.setattr(Devices, "reset_peak", lambda self: order.append("reset") or reset(self))
    monkeypatch.setattr(runner, "attach_banks", lambda *given: order.append("banks") or plain(*given))
    run(trained_first(), tmp_path / "run")
    assert order == ["reset", "reset", "banks", "reset", "banks", "reset"]


def test_a13_parts_are_small_where_layers_are_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 256 numbers, and a layer of 400 kB: parts of the input's size would be 1,024 rows."""
    sizes: list[int] = []

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(256, 100_000), nn.Linear(100_000, 2)

        def forward(self, one: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                sizes.append(len(one))
            return self.out(self.into(one))

    rows = 600
    data = Dataset.from_arrays(
        "wide",
        {"one": torch.randn(rows, 256)},
        torch.arange(rows) % 2,
        splits={"train": range(40), "validation": range(40, 320), "test": range(320, 600)},
    )
    network = Network(Wide(), reads=("one",))
    recipe = Recipe(data=data, student=network, stages=(Stage(method="supervised", epochs=1, batch_size=20),))
    first = run(recipe, tmp_path / "run")
    assert 16 <= max(sizes) <= 2**24 // 400_000
    assert sum(size for size in sizes if size > 4) >= 2 * 280
    again = run(recipe, tmp_path / "again")
    assert [(row.method, row.mean) for row in first.rows] == [(row.method, row.mean) for row in again.rows]
    same = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "again")]
    assert same[0] == same[1]


def test_d_several_runs_are_one_table(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(small(Stage(method="supervised", epochs=1), seed=seed), tmp_path / f"seed{seed}")
    run(small(Stage(method="supervised", epochs=2)), tmp_path / "longer")
    table = Report.of(*sorted(tmp_path.glob("seed*")))
    row = next(row for row in table.rows if row.method == "supervised")
    values = [Report.load(tmp_path / f"seed{seed}").rows[-1].mean for seed in (0, 1)]
    assert row.values == tuple(values)
    assert row.std is not None
    assert "±" in str(table)
    # Another recipe is no further seed of the first.
    own = [row for row in Report.of(*tmp_path.iterdir()).rows if row.method == "supervised"]
    assert sorted(len(row.values) for row in own) == [1, 2]


@pytest.mark.parametrize(
    ("epochs", "order", "facts"),
    [
        (8, (3, 0, 1, 2), ("chance", "output_adapter=")),
        # Half of them right is far above chance, and still wrong: as names sorted as text and as numbers are.
        (40, (1, 0, 2, 3), ("'teacher-0'",)),
    ],
)
def test_a4_another_order_of_classes_is_named(
    epochs: int, order: tuple[int, ...], facts: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = toy_dataset(noise=0.3, rows=600)
    run(small(Stage(method="supervised", learner="teacher-0", epochs=epochs), data=data), tmp_path / "good")
    recipe = small(Stage(method="kd", epochs=1), data=data)
    teacher = recipe.teachers["teacher-0"]
    stage = tmp_path / "good" / "stages" / "00-supervised-teacher-0"
    teacher.load_state_dict(load_file(stage / "teacher-0.safetensors"))
    turned = Network(Turned(teacher.module, order), teacher.reads)
    run(recipe.model_copy(update={"teachers": {"teacher-0": turned}}), tmp_path / "run")
    (message,) = [text for record in caplog.records if "order" in (text := record.getMessage())]
    assert all(fact in message for fact in facts)

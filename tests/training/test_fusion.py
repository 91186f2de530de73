"""Fused teachers before training: the check of the parts, its warning, and settings chosen without training."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import Heard, toy_recipe
from facts import raises, states
from torch import Tensor

from crossdistill import Network, Recipe, Stage, run
from crossdistill.errors import DataError, RunError, SettingError
from crossdistill.method import MethodConfig
from crossdistill.methods import RichKD, RichKDF, RichKDL
from crossdistill.methods.richkd import RichKDConfig
from crossdistill.testing import toy_dataset
from crossdistill.training.fusion import PartLogits, fusion_report
from crossdistill.training.tune_fusion import choose, fitted_temperature, tune_fusion


def drawn(rows: int = 2000, classes: int = 20, *, scale: float = 1.0, good: bool = True) -> PartLogits:
    """A teacher with margin, and cosines whose true class is a little larger, times `scale`: specification, 1.4."""
    torch.manual_seed(0)
    targets = torch.randint(classes, (rows,))
    teacher = torch.randn(rows, classes, dtype=torch.float64) * 2.5
    teacher[torch.arange(rows), targets] += 3.0
    cosines = 0.17 + 0.025 * torch.randn(rows, classes, dtype=torch.float64)
    cosines[torch.arange(rows), targets if good else torch.randint(classes, (rows,))] += 0.06
    seen = torch.ones(rows, dtype=torch.bool)
    return PartLogits({"cnn": teacher, "clip": scale * cosines}, {"cnn": seen, "clip": seen.clone()}, targets)


@pytest.mark.parametrize(("scale", "moves"), [(1.0, False), (100.0, True)])
def test_unscaled_cosines_cannot_move_the_target(scale: float, moves: bool) -> None:
    parts = drawn(scale=scale)
    report = fusion_report(parts, RichKDL())
    assert report.moves == moves
    fused = 0.7 * parts.logits["cnn"] + 0.3 * parts.logits["clip"]
    target, alone = (z / 3 for z in (fused, 0.7 * parts.logits["cnn"]))
    wanted = torch.nn.functional.kl_div(alone.log_softmax(1), target.softmax(1), reduction="batchmean")
    assert report.moved == pytest.approx(float(wanted))
    assert report.fused.accuracy == float((fused.argmax(1) == parts.targets).double().mean())
    agree = parts.logits["cnn"].argmax(1) == parts.logits["clip"].argmax(1)
    assert report.agreement == {"clip": float(agree.double().mean())}
    states(report.warning(), "'clip'", "'cnn'", 0.7, "temperatures.clip=0.01", "tune-fusion")
    assert "clip agrees with cnn" in report.text()


def test_a_part_that_lacks_rows_is_measured_on_its_own() -> None:
    parts = drawn(rows=60, scale=100.0)
    parts.seen["clip"][:40] = False
    report = fusion_report(parts, RichKDL())
    assert [report.parts[name].rows for name in ("cnn", "clip")] == [60, 20]
    assert report.fused.rows == 60
    assert fusion_report(parts, RichKDL(per_sample=True)).moved < report.moved


def test_the_temperature_of_a_part_is_found() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20_000, 6, dtype=torch.float64) * 2
    targets = torch.distributions.Categorical(logits=logits).sample()
    assert fitted_temperature(logits * 4, targets) == pytest.approx(4, rel=0.03)
    assert fitted_temperature(logits / 100, targets) == pytest.approx(0.01, rel=0.03)
    assert 0.01 < fitted_temperature(logits, logits.argmax(1)) < 1, "finite without a mistake"
    assert fitted_temperature(-logits, targets) == 1.0
    assert fitted_temperature(logits[:0], targets[:0]) == 1.0


def test_coefficients_are_those_of_the_lowest_loss() -> None:
    found = choose(drawn(), RichKDL(), "richkd-l")
    assert 0.2 < found.best.alpha < 0.9
    alone = next(one for one in found.candidates if one.alpha == 1)
    assert found.best.nll < alone.nll - 0.02
    assert found.best.accuracy > alone.accuracy
    assert found.held_out[0] == pytest.approx(found.best.nll, rel=0.05)
    assert found.calibrated["clip"] < 0.05
    assert found.best.temperatures["clip"] < found.calibrated["clip"], "two teachers know more than one"
    assert found.best.ece < 0.05
    lines = found.settings()
    assert lines[0] == f"stages.richkd-l.method.alpha={found.best.alpha:g}"
    assert found.command_line() in found.text()
    states(found.text(), *(f"{name} {value:.3g}" for name, value in found.best.temperatures.items()))
    useless = choose(drawn(good=False, scale=100.0), RichKDL(), "richkd-l")
    assert useless.best.alpha > 0.9
    assert useless.best.nll <= alone.nll + 1e-3


def fusing(method: MethodConfig, **more: Any) -> Recipe:
    teachers = [
        Stage(
            name=f"supervised-teacher-{number}", method="supervised", learner=f"teacher-{number}", teachers=(), epochs=2
        )
        for number in range(2)
    ]
    last = Stage(method=method, epochs=2, batch_size=48, teachers=("teacher-0", "teacher-1"))
    return toy_recipe(*teachers, last, **more)


def test_a_run_says_what_its_teachers_are_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    display = Heard()
    with caplog.at_level(logging.WARNING, "crossdistill"):
        run(fusing(RichKDL(temperatures={"teacher-1": 1e4})), tmp_path, display=display)
    said = [line for line in display.lines if "fused accuracy" in line]
    assert len(said) == 1
    states(said[0], "richkd-l", "teacher-0", "teacher-1", "validation rows", "T = 3")
    assert len([record for record in caplog.messages if "cannot move the target" in record]) == 1


def test_settings_are_chosen_from_banks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fusing(RichKD(negatives=32, width=8))
    with raises(RunError, "supervised-teacher-0", "teachers.cnn=RUN"):
        tune_fusion(made, tmp_path / "new")
    run(made, tmp_path / "run")
    passes = []
    plain = Network.forward

    def counted(self: Network, *given: Any, **named: Any) -> Any:
        passes.append(len(given[0]))
        return plain(self, *given, **named)

    monkeypatch.setattr(Network, "forward", counted)
    found = tune_fusion(made, tmp_path / "run")
    assert sum(passes) < 40, "trial passes of the plan alone"
    assert found.rows == len(toy_dataset().splits["validation"])
    tuned = made.overridden(found.settings()).stages[-1].method
    assert isinstance(tuned, RichKDConfig)
    assert tuned.alpha == found.best.alpha
    assert tuned.temperatures == pytest.approx(found.best.temperatures, rel=1e-3)
    assert tuned.per_sample == found.best.per_sample
    assert found.as_data()["settings"] == found.settings()


def test_what_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    for method in ("kd", RichKDF(negatives=32, width=8)):
        with raises(SettingError, "richkd-l"):
            tune_fusion(toy_recipe(Stage(method=method, epochs=1)), tmp_path)
    few = toy_dataset()
    rows = few.splits["validation"]
    targets: Tensor = few.targets.clone()
    targets[rows[3:]] = -100
    with raises(DataError, 3, 20):
        tune_fusion(toy_recipe(Stage(method=RichKDL(), epochs=1), data=replace(few, targets=targets)), tmp_path)

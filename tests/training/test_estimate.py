"""What `--dry-run` prints stays readable for slow steps and for small banks."""

import pytest

from crossdistill.training.estimate import Forecast, StageForecast


def forecast(step: float, bank_bytes: int) -> Forecast:
    stage = StageForecast(
        name="collaborate",
        method="collaborate",
        trains=2_215_020,
        batch_size=64,
        step_seconds=(step, step, 1.1 * step),
        epochs=100,
        steps=1_400,
        seconds=1_400 * step,
        peak_memory_mb=1996.0,
        teachers=("mm", "image"),
    )
    return Forecast(
        recipe="av-mnist/mst-distill",
        student="audio",
        device="cpu",
        data="av-mnist",
        splits={"train": 840},
        members={"audio": 343_562},
        stages=(stage,),
        bank_bytes=bank_bytes,
        timed_steps=20,
    )


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (27.6471, " 27.6 / 27.6 / 30.4 s "),
        (2.76471, " 2764.7 / 2764.7 / 3041.2 ms "),
        (0.01, " 10.0 / 10.0 / 11.0 ms "),
    ],
)
def test_columns_stay_apart(step: float, said: str) -> None:
    text = forecast(step, 0).text()
    assert said in text
    assert " 1,400 " in text


@pytest.mark.parametrize(("size", "said"), [(3_000, "2.9 kB"), (5 * 2**20, "5.0 MB")])
def test_a_small_bank_is_not_said_to_be_nothing(size: int, said: str) -> None:
    assert f"if all are stored: {said}" in forecast(1.0, size).text()

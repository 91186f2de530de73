"""Pairs of methods that are compared, and the conclusions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from facts import raises
from numpy.typing import NDArray

from crossdistill.compare.grid import Setting
from crossdistill.compare.results.collect import Answers, Collected
from crossdistill.compare.results.pairwise import compare_pairwise, exceeds, reference, sample_numbers
from crossdistill.data.dataset import Dataset
from crossdistill.errors import RunError

ALONE = Setting("supervised", "image", None, 1.0, None)
KD, KD_CROSS = Setting("kd", "image", "mm", 1.0, None), Setting("kd", "image", "cm", 1.0, None)
MST = Setting("mst-distill", "image", "mm+cm", 1.0, None)
CONTROL = replace(KD, control="shuffled")
ROWS = 400


def row_ids(student: str, seed: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids


def collected(rates: dict[Setting, float], seeds: dict[Setting, tuple[int, ...]] | None = None) -> Collected:
    """Methods with given accuracies, on rows of equal difficulty for all of them."""
    hard = np.random.default_rng(0).random(ROWS)
    answers = {}
    for number, (setting, rate) in enumerate(rates.items()):
        answers[setting] = {}
        for seed in (seeds or {}).get(setting, (0, 1, 2)):
            luck = np.random.default_rng([number, seed]).normal(0, 0.03, ROWS)
            answers[setting][seed] = Answers(np.arange(ROWS), hard + luck < rate)
    return Collected((), answers, {})


def test_the_reference_has_the_same_teachers_if_possible() -> None:
    among = [ALONE, KD, KD_CROSS, MST, CONTROL]
    fitnets = Setting("fitnets", "image", "cm", 1.0, None)
    assert reference(fitnets, "kd", among) == KD_CROSS
    assert reference(MST, "kd", among) == KD
    assert reference(CONTROL, "supervised", among) == ALONE
    assert reference(KD, "rkd", among) is None


def test_clear_differences_are_significant_and_noise_is_not() -> None:
    results = compare_pairwise(collected({ALONE: 0.5, KD: 0.62, KD_CROSS: 0.5, MST: 0.4}), row_ids)
    conclusions = {(pair.setting, pair.against): pair.verdict for pair in results.pairs}
    assert conclusions == {
        (KD, ALONE): "better",
        (KD_CROSS, ALONE): "not distinguishable",
        (MST, ALONE): "worse",
        (MST, KD): "worse",
    }
    gain = results.of(KD, "supervised")
    assert gain.difference.low < gain.difference.value < gain.difference.high
    assert (gain.wins, gain.ties, gain.losses) == (3, 0, 0)
    assert gain.p_holm == pytest.approx(4 * gain.difference.p)


def test_the_correction_covers_one_student_at_one_fraction_of_labels() -> None:
    other = {replace(s, student="audio"): rate for s, rate in {ALONE: 0.5, KD: 0.52}.items()}
    results = compare_pairwise(collected({ALONE: 0.5, KD: 0.52, MST: 0.53, **other}), row_ids)
    audio = next(pair for pair in results.pairs if pair.setting.student == "audio")
    assert audio.p_holm == audio.difference.p
    image = [pair for pair in results.pairs if pair.setting.student == "image"]
    assert len(image) == 3
    assert min(pair.p_holm for pair in image) == pytest.approx(3 * min(pair.difference.p for pair in image))


def test_only_seeds_that_both_have_are_compared() -> None:
    results = compare_pairwise(collected({ALONE: 0.5, KD: 0.5, MST: 0.5}, {MST: (1,), ALONE: (0, 1)}), row_ids)
    seeds = {(pair.setting, pair.against): pair.seeds for pair in results.pairs}
    assert seeds == {(KD, ALONE): (0, 1), (MST, ALONE): (1,), (MST, KD): (1,)}


def test_methods_without_a_common_seed_are_not_compared() -> None:
    results = compare_pairwise(collected({ALONE: 0.5, KD: 0.5}, {ALONE: (0,), KD: (1,)}), row_ids)
    assert results.pairs == ()


@pytest.mark.parametrize(("rate", "above"), [(0.3, False), (0.5, True), (0.6, True)])
def test_a_control_must_stay_below_the_student_alone_with_its_upper_bound(rate: float, above: bool) -> None:
    results = compare_pairwise(collected({ALONE: 0.5, KD: 0.5, CONTROL: rate}), row_ids)
    (control,) = results.controls
    assert (control.setting, control.against) == (CONTROL, ALONE)
    assert exceeds(control) is above
    assert [pair.setting for pair in results.pairs] == [KD]
    plain = results.as_data()["controls"][0]
    assert plain["exceeds"] is above
    assert plain["control_upper"] == control.difference.high


def test_rows_that_show_the_same_input_are_one_sample() -> None:
    """Forty rows of each of ten pictures are no more evidence than the ten pictures are."""
    source = np.random.default_rng(3)
    right = {method: np.repeat(source.random((3, 10)) < 0.5, 40, axis=1) for method in (ALONE, KD)}
    answers = {m: {seed: Answers(np.arange(ROWS), right[m][seed]) for seed in range(3)} for m in right}
    data = Collected((), answers, {})
    apart = compare_pairwise(data, row_ids).pairs[0]
    together = compare_pairwise(data, lambda student, seed, ids: ids // 40).pairs[0]
    assert (apart.samples, together.samples) == (ROWS, 10)
    assert together.difference.value == pytest.approx(apart.difference.value)
    assert together.difference.high - together.difference.low > 1.2 * (apart.difference.high - apart.difference.low)


def test_samples_are_numbered_by_the_input_of_the_student() -> None:
    pictures = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [1.0, 2.0]])
    sounds = torch.arange(8.0).reshape(4, 2)
    data = Dataset.from_arrays(
        "own",
        {"picture": pictures, "sound": sounds},
        torch.tensor([0, 1, 0, 0]),
        splits={"train": [0], "validation": [1], "test": [2, 3]},
    )
    ids = np.array([0, 1, 2, 3])
    numbers = sample_numbers(data, ("picture",), ids)
    assert numbers[0] == numbers[2] == numbers[3] != numbers[1]
    assert len(set(sample_numbers(data, ("picture", "sound"), ids).tolist())) == 4
    with raises(RunError, "row 9"):
        sample_numbers(data, ("picture",), np.array([9]))

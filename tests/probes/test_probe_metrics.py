"""Scores of probes, against values by hand and against scikit-learn."""

import pytest
import torch
from facts import raises
from sklearn.metrics import r2_score, roc_curve

from crossdistill.errors import DataError
from crossdistill.probes.metrics import (
    KEYS,
    accuracy,
    edit_distance,
    equal_error_rate,
    key_class,
    r2,
    weighted_key_score,
    word_error_rate,
)


def test_all_slots_have_to_be_right() -> None:
    assert accuracy(torch.tensor([[1, 2], [1, 0], [3, 3]]), torch.tensor([[1, 2], [1, 1], [3, 3]])) == pytest.approx(
        2 / 3
    )


def test_word_error_rate_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    # One substitution and one deletion of four words, and two insertions for one word.
    assert word_error_rate(["a x c", "p q r"], ["a b c d", "q"]) == pytest.approx(4 / 5)
    with raises(DataError):
        word_error_rate(["a"], [" "])


@pytest.mark.parametrize(
    ("predicted", "true", "score"),
    [
        ("C major", "C major", 1.0),
        ("G major", "C major", 0.5),
        ("F major", "C major", 0.0),
        ("A minor", "C major", 0.3),
        ("C major", "A minor", 0.3),
        ("C minor", "C major", 0.2),
        ("E minor", "A minor", 0.5),
        ("D minor", "C major", 0.0),
    ],
)
def test_weighted_key_score_as_mirex_has_it(predicted: str, true: str, score: float) -> None:
    found = weighted_key_score(torch.tensor([KEYS.index(predicted)]), torch.tensor([KEYS.index(true)]))
    assert found == pytest.approx(score)


def test_names_of_keys() -> None:
    for text, name in (
        ("C# min", "Db minor"),
        ("eb:major", "Eb major"),
        ("Am", "A minor"),
        ("F#m", "Gb minor"),
        ("B", "B major"),
    ):
        assert KEYS[key_class(text)] == name
    with raises(DataError, "'H minor'"):
        key_class("H minor")


def test_r2_is_that_of_scikit_learn() -> None:
    predicted, true = torch.randn(20, 2), torch.randn(20, 2)
    assert r2(predicted, true) == pytest.approx(r2_score(true, predicted, multioutput="raw_values"))


def test_equal_error_rate() -> None:
    same = torch.tensor([True, True, True, False, False, False])
    assert equal_error_rate(torch.tensor([0.9, 0.8, 0.7, 0.3, 0.2, 0.1]), same) == 0
    assert equal_error_rate(torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), same) == 1
    assert equal_error_rate(torch.tensor([0.9, 0.8, 0.2, 0.7, 0.3, 0.1]), same) == pytest.approx(1 / 3)
    assert equal_error_rate(torch.full((6,), 0.5), same) == pytest.approx(0.5)
    same = torch.rand(500) < 0.3
    scores = torch.randn(500) + same.float()
    false, true, _ = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    place = int((false >= 1 - true).argmax())
    assert false[place - 1] <= equal_error_rate(scores, same) <= false[place]
    with raises(DataError):
        equal_error_rate(torch.rand(3), torch.ones(3, dtype=torch.bool))

"""Probes of an embedding: kNN and the linear probe, against slow forms of both."""

import math
import warnings

import pytest
import torch
from facts import raises
from torch import Tensor, nn

from crossdistill import Dataset, Network
from crossdistill.errors import ApplicabilityError, DataError, SettingError
from crossdistill.testing import toy_dataset, toy_models
from crossdistill.training.probe import Embedded, linear_probe, neighbours, probe


def drawn(rows: int, seed: int, classes: int = 3, width: int = 5) -> Embedded:
    source = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    features = centres[targets] + torch.randn(rows, width, generator=source)
    return Embedded(torch.arange(rows), features * torch.tensor([1.0, 100, 0.01, 1, 1])[:width], targets)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_neighbours_by_hand(k: int) -> None:
    train, test = drawn(40, 1), drawn(12, 2)
    wanted = []
    for row in test.features.tolist():
        near = []
        for other, target in zip(train.features.tolist(), train.targets.tolist(), strict=True):
            norms = math.sqrt(sum(a * a for a in row)) * math.sqrt(sum(b * b for b in other))
            near.append((sum(a * b for a, b in zip(row, other, strict=True)) / norms, target))
        votes = [0.0] * 3
        for similarity, target in sorted(near, reverse=True)[:k]:
            votes[target] += math.exp(similarity / 0.07)
        wanted.append(votes.index(max(votes)))
    assert neighbours(train, test, 3, k).tolist() == wanted


def test_the_linear_probe_is_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, validation = drawn(90, 1), drawn(60, 2)
    made = linear_probe(train, validation, 3, decays=[0.01])
    values = train.features.double()
    values = (values - values.mean(0)) / values.std(0, correction=0)
    # sklearn's loss is the sum of the cross-entropy, plus |weight|² / 2C.
    with warnings.catch_warnings():
        # Old versions of scikit-learn call newer ones of SciPy with options that these warn of.
        warnings.simplefilter("ignore", DeprecationWarning)
        sk = linear_model.LogisticRegression(C=1 / (0.01 * 90), tol=1e-10, max_iter=5000).fit(values, train.targets)
    wanted = torch.tensor(sk.decision_function(values)).log_softmax(1)
    torch.testing.assert_close(made.logits(train.features).log_softmax(1), wanted, atol=1e-4, rtol=1e-4)


def test_the_validation_split_chooses_the_weight_decay() -> None:
    train, validation = drawn(30, 1), drawn(300, 2)
    made = linear_probe(train, validation, 3)
    scores = {}
    for decay in (1e-6, 1e-3, 1e-1, 10.0):
        predicted = linear_probe(train, validation, 3, decays=[decay]).logits(validation.features).argmax(1)
        scores[decay] = float((predicted == validation.targets).double().mean())
    chosen = float((made.logits(validation.features).argmax(1) == validation.targets).double().mean())
    assert chosen >= max(scores.values())
    empty = Embedded(torch.zeros(0).long(), torch.zeros(0, 5), torch.zeros(0).long())
    assert linear_probe(train, empty, 3).weight_decay == pytest.approx(0.01)


def test_a_network_is_probed_on_any_labelled_split() -> None:
    dataset = toy_dataset(noise=0.3)
    network = toy_models(dataset, 1)["student-network"]
    found = probe(network, dataset)
    assert found.rows == len(dataset.splits["test"])
    assert min(found.linear, found.knn) > 0.8  # of an untrained network, on easy data
    assert probe(network, dataset, "validation").rows == len(dataset.splits["validation"])
    few = toy_dataset(noise=0.3, labelled=0.05)
    assert 0 < probe(network, few).linear <= found.linear + 0.05


def test_what_cannot_be_probed_is_said() -> None:
    dataset = toy_dataset()
    network = toy_models(dataset, 1)["student-network"]
    with raises(SettingError, "'tset'", "'test'"):
        probe(network, dataset, "tset")
    bare = Dataset.from_arrays("bare", {"first": dataset.inputs["first"]})
    with raises(DataError, "'train'"):
        probe(network, bare)

    class Logits(nn.Module):
        def forward(self, first: Tensor) -> Tensor:
            return first[:, :4]

    with raises(ApplicabilityError, "embedding"):
        probe(Network(Logits(), "first"), dataset)

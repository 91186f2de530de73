"""Probes of an embedding on labelled rows: k nearest neighbours, and a linear classifier on the frozen embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from crossdistill.batch import MISSING_TARGET
from crossdistill.data.dataset import Dataset, rows_with_label
from crossdistill.errors import ApplicabilityError, DataError, SettingError, nearest
from crossdistill.methods.layer_choice import chosen
from crossdistill.nets.translators import by_position
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.planning.part_size import rows_at_once
from crossdistill.teacher import Live, Teacher
from crossdistill.training.evaluation import batches

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Neighbours, and temperature T of their weights exp(similarity / T), as in DINO (Caron et al., ICCV 2021)."""

DECAYS = tuple(10.0**power for power in range(-6, 2))
"""Weight decays of the linear probe, from which the validation split chooses."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of labelled rows: sample ids (N,), features (N, D), classes (N,)."""

    ids: Int64[Tensor, " N"]
    features: Float[Tensor, "N D"]
    targets: Int64[Tensor, " N"]


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A linear classifier on an embedding, in its own unit: logits = features · weightᵀ + bias."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]
    weight_decay: float

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """The logits of some rows, in double precision."""
        return features.double() @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Accuracies of both probes on a split, over `rows` rows with a label and the network's inputs."""

    linear: float
    knn: float
    weight_decay: float
    """Weight decay of the linear probe, chosen on the validation split."""
    rows: int


def probe(network: Network | Teacher, dataset: Dataset, split: str = "test", device: str = "cpu") -> ProbeResult:
    """The accuracies of kNN and of a linear probe on a network's embedding (its last tap, if it has none).

    Both are fitted on the training rows whose label the student may use.

    Raises:
        DataError: a split has no labelled row that the network reads.
        SettingError: there is no such split.
        ApplicabilityError: the network has neither an embedding nor a tap besides its logits.
    """
    if split not in dataset.splits:
        raise SettingError(f"data {dataset.name!r} has no split {split!r}; {nearest(split, dataset.splits)}")
    where = torch.device(device)
    if isinstance(network, Network):
        if network.spec is None:
            network.probe(dataset.example().to(where))
        network = Live(network.name, network)
    train, validation, test = (embedded(network, dataset, name, where) for name in ("train", "validation", split))
    for name, part in (("train", train), (split, test)):
        if not len(part.ids):
            raise DataError(f"data {dataset.name!r}: no row of {name!r} has a label and the inputs of {network.name!r}")
    classes = len(dataset.classes)
    linear = linear_probe(train, validation, classes)
    return ProbeResult(
        accuracy(linear.logits(test.features).argmax(1), test),
        accuracy(neighbours(train, test, classes), test),
        linear.weight_decay,
        len(test.ids),
    )


def embedding_of(spec: OutputSpec, who: str) -> Signal:
    """The output that is probed: the embedding, or else the last tap that is not the logits.

    Raises:
        ApplicabilityError: there is neither.
    """
    signal = next(iter(chosen("vector", spec)), None)
    if signal is None:
        raise ApplicabilityError(f"{who!r} has no embedding and no tap besides its logits; name one in its taps")
    return signal


@torch.no_grad()
def embedded(source: Teacher, dataset: Dataset, split: str, device: torch.device) -> Embedded:
    """The embeddings of a split's labelled rows; of the training split, of the rows that the student may use."""
    signal = embedding_of(source.spec, source.name)
    known = rows_with_label(dataset) if split == "train" else dataset.targets != MISSING_TARGET
    rows = dataset.splits[split]
    rows = rows[known[rows]]
    source = source.select({signal})
    only = source.modalities
    ids, features = [torch.zeros(0, dtype=torch.int64)], []
    size = rows_at_once(source, lambda n: dataset.batch(rows[:n], only=only).to(device), len(rows), device)
    for batch in batches(dataset, rows, device, size, only=only):
        outputs = source(batch)
        features.append(by_position(outputs.need(signal)).mean(1).cpu())
        ids.append(outputs.of(batch.ids).cpu())
    found = torch.cat(ids)
    return Embedded(found, torch.cat(features) if features else torch.zeros(0, 1), dataset.targets[found])


def accuracy(predicted: Int64[Tensor, " N"], part: Embedded) -> float:
    """Fraction of correct predictions."""
    return float((predicted == part.targets).double().mean())


def neighbours(
    train: Embedded, test: Embedded, classes: int, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Int64[Tensor, " N"]:
    """The class with the largest sum of exp(similarity / `temperature`) over the `k` most similar training rows."""
    known = functional.normalize(train.features.double(), dim=1)
    predicted = []
    for part in functional.normalize(test.features.double(), dim=1).split(1024):
        nearby = (part @ known.T).topk(min(k, len(known)), dim=1)
        # Relative to the nearest one, which changes no comparison and cannot overflow.
        weights = ((nearby.values - nearby.values[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), classes, dtype=weights.dtype)
        predicted.append(votes.scatter_add(1, train.targets[nearby.indices], weights).argmax(1))
    return torch.cat(predicted) if predicted else torch.zeros(0, dtype=torch.int64)


def linear_probe(train: Embedded, validation: Embedded, classes: int, decays: Sequence[float] = DECAYS) -> LinearProbe:
    """Multinomial logistic regression on standardised embeddings, by L-BFGS in double precision from zero.

    The loss is the mean cross-entropy + decay / 2 · |weight|². The decay with the highest validation accuracy is kept
    (of equal ones that with the lowest cross-entropy); without labelled validation rows, the middle one.
    """
    features = train.features.double()
    mean, deviation = features.mean(0), features.std(0, correction=0)
    scale = torch.where(deviation > 1e-9, 1 / deviation.clamp(min=1e-9), 0.0)
    values = (features - mean) * scale
    best: tuple[tuple[float, float], LinearProbe] | None = None
    for decay in decays if len(validation.ids) else [decays[len(decays) // 2]]:
        weight, bias = _fitted(values, train.targets, classes, decay)
        made = LinearProbe(weight * scale, bias - weight @ (mean * scale), decay)
        logits = made.logits(validation.features) if len(validation.ids) else torch.zeros(0, classes)
        surprise = functional.cross_entropy(logits, validation.targets) if len(logits) else torch.zeros(())
        score = (-accuracy(logits.argmax(1), validation) if len(logits) else 0.0, float(surprise))
        if best is None or score < best[0]:
            best = score, made
    assert best is not None
    return best[1]


def _fitted(values: Tensor, targets: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(classes, values.shape[1], dtype=values.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=values.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(values @ weight.T + bias, targets) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()

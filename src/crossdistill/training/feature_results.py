"""Results of a network whose logits were not trained: probes of its embedding, and the validation loss."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.nets.translators import by_position
from crossdistill.network import Network
from crossdistill.outputs import Signal
from crossdistill.report import Measured, Row
from crossdistill.teacher import Live, Teacher, TeacherBase
from crossdistill.training.evaluation import predict
from crossdistill.training.predictions import Predictions
from crossdistill.training.probe import LinearProbe, accuracy, embedded, embedding_of, linear_probe, neighbours

KNN = "kNN accuracy"


def by_features(
    source: Teacher, dataset: Dataset, split: str, device: torch.device
) -> tuple[Predictions, dict[str, float]]:
    """Predictions of a linear probe on a split, and the accuracy of kNN; no rows where the data have no such labels.

    If the network's last layer is linear on its embedding, the probe becomes that layer, so that the saved network
    predicts with it.
    """
    none = torch.zeros(0, dtype=torch.int64)
    if dataset.task != "classes":
        return Predictions(none, none, none, columns=len(dataset.classes)), {}
    train, validation, test = (embedded(source, dataset, name, device) for name in ("train", "validation", split))
    if not len(train.ids) or not len(test.ids):
        return Predictions(none, none, none, columns=len(dataset.classes)), {}
    classes = len(dataset.classes)
    knn = {KNN: accuracy(neighbours(train, test, classes), test)}
    probe = linear_probe(train, validation, classes)
    network = TeacherBase.of(source).unshuffled.base.network
    layer = None if network is None else _last_layer(network, dataset.example().to(device))
    if network is not None and layer is not None:
        _become(layer, probe)
        live = Live(source.name, network)
        rows = dataset.splits[split]
        return predict(live, dataset, rows, device, only=live.modalities, probabilities=True), knn
    logits = probe.logits(test.features)
    return Predictions(test.ids, logits.argmax(1), test.targets, logits.softmax(1).float(), "classes", classes), knn


def with_measured(row: Row, measured: Mapping[str, float]) -> Row:
    """A row with further metrics; where it has no predictions, the validation loss is its main one."""
    added = tuple(Measured(name, value, None, (value,)) for name, value in measured.items())
    if row.test_rows or not added:
        return replace(row, metrics=(*row.metrics, *added))
    main, *others = added
    return replace(row, metric=main.metric, mean=main.mean, values=main.values, metrics=tuple(others))


@torch.no_grad()
def _last_layer(network: Network, batch: Batch) -> nn.Linear | None:
    """The layer that makes the logits from the embedding, if there is one, by the values of a few rows."""
    assert network.spec is not None
    signal = embedding_of(network.spec, network.name)
    seen: dict[nn.Linear, tuple[Tensor, Tensor]] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        seen[layer] = inputs[0], output

    layers = [layer for layer in network.module.modules() if isinstance(layer, nn.Linear) and layer.bias is not None]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        outputs = network(batch, {Signal.LOGITS, signal})
    finally:
        for handle in handles:
            handle.remove()
    embedding = by_position(outputs.need(signal)).mean(1)
    for layer, (value, result) in seen.items():
        if outputs.logits is not None and torch.equal(result, outputs.logits) and torch.equal(value, embedding):
            return layer
    return None


@torch.no_grad()
def _become(layer: nn.Linear, probe: LinearProbe) -> None:
    layer.weight.copy_(probe.weight)
    layer.bias.copy_(probe.bias)

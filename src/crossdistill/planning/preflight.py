"""Checks of a stage before training: its settings, and one trial step on a few rows."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from crossdistill.adapters import LOW
from crossdistill.batch import Batch
from crossdistill.data.augmentation import Variations
from crossdistill.data.dataset import Dataset, rows_with_label
from crossdistill.data.remarks import untrained
from crossdistill.data.sampler import Order
from crossdistill.data.targets import has_target, hidden
from crossdistill.errors import CrossdistillError, SettingError, ShapeError, nearest
from crossdistill.method import DataSpec, Method, Progress, Step
from crossdistill.models.own_network import weights_outside
from crossdistill.nets.batch_statistics import batch_statistics, can_join
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec
from crossdistill.stage import Stage
from crossdistill.teacher import Live, Teacher, TeacherBase

Trained = Mapping[str, tuple[Network, tuple[str, ...]]]
"""The trained members by name, each with the taps whose layers train (empty: the whole network)."""


def training_parts(trained: Trained) -> dict[str, nn.Module]:
    """The trained modules of each member: the whole network, or its layers at some taps."""
    return {
        name: nn.ModuleList(network.module.get_submodule(tap) for tap in taps) if taps else network
        for name, (network, taps) in trained.items()
    }


def check_settings(
    stage: Stage,
    method: Method,
    training: Mapping[str, nn.Module],
    teachers: Mapping[str, Teacher],
    device: torch.device,
    ranks: int = 1,
) -> list[str]:
    """Faults of a stage that do not depend on its method; `training` are the modules, or parts, that it trains."""
    faults = [*graph_faults(stage, method, device), *_statistics_faults(stage, training, teachers, ranks)]
    if stage.cuda_graphs and ranks > 1:
        faults.append(f"cuda_graphs is for one process, and there are {ranks}; set cuda_graphs to false")
    if method.batch_relational and stage.micro_batches > 1:
        faults.append(
            f"{stage.method.name} compares the rows of a batch with each other, so a batch cannot be computed in "
            f"{stage.micro_batches} micro-batches; set micro_batches to 1"
        )
    if stage.batch_size < method.least_rows:
        faults.append(
            f"{stage.method.name} compares the rows of a batch with each other and needs at least {method.least_rows}; "
            f"batch_size is {stage.batch_size}"
        )
    parameters = [parameter for module in training.values() for parameter in module.parameters()]
    if stage.epochs and not parameters:
        faults.append(
            "nothing trains here: `trains` names no member with parameters, and the method has no parameters of its "
            "own; name a member in `trains`"
        )
    elif stage.epochs and not any(parameter.requires_grad for parameter in parameters):
        faults.append(
            f"nothing trains here: all {len(parameters)} parameters of {', '.join(map(repr, training))} have "
            "requires_grad=False; set requires_grad=True on those that are to train"
        )
    if stage.optimizer.moments == "disk" and device.type != "cpu":
        faults.append(
            f"optimizer.moments='disk' maps files into the memory of the CPU, and the weights are on {device.type}; "
            "set optimizer.moments to 'memory', or device to 'cpu'"
        )
    low = {parameter.dtype for parameter in parameters if parameter.dtype in LOW} if stage.ema is not None else set()
    if low:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in low))
        faults.append(
            f"ema: weights are {names}, whose rounding is larger than a step of the average; give weights in float32, "
            "and set precision to compute in a lower one"
        )
    known = [*training, "weighting"]
    faults += [
        f"optimizer.rates: no part that trains in this stage is called {name!r}; {nearest(name, known)}"
        for name in stage.optimizer.rates
        if name not in known
    ]
    return faults


def _class_faults(dataset: Dataset) -> list[str]:
    """Faults: classes of the validation or test rows without a training row."""
    if dataset.task != "classes":
        return []
    classes = untrained(dataset.targets, dataset.classes, dataset.splits)
    if not classes:
        return []
    named = ", ".join(map(repr, classes[:8])) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
    return [
        f"classes {named}: rows of validation or test, but none of training; give `splits` in which the training split "
        "has rows of each class, or leave these rows out of the other splits"
    ]


def data_spec(dataset: Dataset) -> DataSpec:
    """The facts about the training data for a method; targets hidden from the student are missing."""
    train = dataset.splits["train"]
    known = rows_with_label(dataset)[train]
    targets = hidden(dataset.learnt(train), known)
    domains = None if dataset.domain is None else tuple(dict.fromkeys(dataset.domain[row] for row in train.tolist()))
    share = float(known.double().mean())
    return DataSpec(len(train), len(dataset.classes), targets, train, share, dataset.task, domains)


def check_sources(
    trained: Sequence[Network], student: Live, teachers: Mapping[str, Teacher], dataset: Dataset, batch: Batch
) -> list[str]:
    """Faults of networks and their inputs that would silently change the meaning of a stage.

    They are: weights that a trained network reads but its module does not contain, and a teacher without outputs for
    any training row of the learner.
    """
    faults = []
    for network in trained:
        outside = weights_outside(network, batch) if network.has_own_code() else []
        if outside:
            more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
            faults.append(
                f"{network.name} trains and reads weights that its module does not contain ({', '.join(outside[:3])}"
                f"{more}); they would neither train nor be saved: make them a part of the module (an nn.ModuleList "
                "instead of a list, a layer instead of a global variable), or set their requires_grad to False"
            )
    train = dataset.splits["train"]
    learner_rows = _rows_of(student, dataset)[train]
    faults += [
        f"teacher {name!r} has no output for any of the {int(learner_rows.sum()):,} training rows (of {len(train):,}) "
        f"that {student.name!r} reads: {' or '.join(teacher.modalities)} is absent there; leave the teacher out, or "
        "give rows in which the inputs of both are present"
        for name, teacher in teachers.items()
        if not bool((_rows_of(teacher, dataset)[train] & learner_rows).any())
    ]
    return faults + [fault for source in (student, *teachers.values()) for fault in _frameless(source, dataset)]


def _frameless(source: Teacher, dataset: Dataset) -> list[str]:
    """A fault: rows shorter than the receptive field of a network that knows its frames; they would have no loss."""
    network = TeacherBase.of(source).unshuffled.network
    frames = getattr(network, "frames", None) or getattr(getattr(network, "module", None), "frames", None)
    lengths = getattr(dataset.inputs.get(source.modalities[0]), "lengths", None) if source.modalities else None
    if frames is None or not isinstance(lengths, Tensor):
        return []
    counts = frames(lengths.long())
    if counts is None or not bool((counts < 1).any()):
        return []
    short = (counts < 1).nonzero().flatten()
    return [
        f"{source.name!r} gives no frame of {len(short):,} of {len(dataset):,} rows, of which the shortest has "
        f"{int(lengths[short].min()):,} values (row {int(short[lengths[short].argmin()])}): they are shorter than its "
        "receptive field; leave them out (for clips of a manifest: data.min_seconds)"
    ]


def _rows_of(source: Teacher, dataset: Dataset) -> Bool[Tensor, " N"]:
    network = TeacherBase.of(source).unshuffled.network
    if network is not None:
        return seen_rows(dataset, network)
    there = torch.ones(len(dataset), dtype=torch.bool)
    return torch.stack([dataset.present.get(name, there) for name in source.modalities]).all(0)


def _statistics_faults(
    stage: Stage, training: Mapping[str, nn.Module], teachers: Mapping[str, Teacher], ranks: int
) -> list[str]:
    """Faults: layers that normalise over the batch, while the batch is computed in parts."""
    normalising = {name: batch_statistics(module) for name, module in training.items()}
    for name, teacher in teachers.items():
        if name not in training:
            normalising[name] = {
                key: layer
                for module in TeacherBase.of(teacher).modules()
                for key, layer in batch_statistics(module, train=False).items()
            }
    faults = []
    if stage.micro_batches > 1:
        faults += [
            f"micro_batches: {_layers(name, layers)}, so a batch is not the sum of its {stage.micro_batches} "
            "micro-batches; set micro_batches to 1"
            for name, layers in normalising.items()
            if layers
        ]
    if ranks > 1:
        separate = {
            name: {key: layer for key, layer in layers.items() if not can_join(layer)}
            for name, layers in normalising.items()
        }
        faults += [
            f"{ranks} processes: {_layers(name, layers)}, and each process has other rows; only nn.BatchNorm1d, 2d and "
            "3d with running statistics are computed over the rows of all processes: run it in one process"
            for name, layers in separate.items()
            if layers
        ]
    return faults


def _layers(where: str, layers: Mapping[str, nn.Module]) -> str:
    names = [f"{name} ({type(layer).__name__})" for name, layer in layers.items()]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{where!r} has layers that normalise by statistics of the whole batch: {', '.join(names[:3])}{more}"


def check_lone_rows(
    method: Method,
    training: Mapping[str, nn.Module],
    order: Order,
    epochs: int,
    batch: Batch,
    student: Teacher,
    teachers: Mapping[str, Teacher],
    dataset: Dataset,
) -> None:
    """Refuse steps in which a batch norm has one value per channel, so that no variance exists.

    Raises:
        SettingError: there is such a step; names the layer and the setting to change.
    """
    normed = {name: module for name, module in training.items() if batch_statistics(module)}
    if not normed or not epochs:
        return
    smallest = min(order.batch_size, order.num_rows)
    readers = {source.modalities for name, source in {student.name: student, **teachers}.items() if name in normed}
    absent = [[dataset.present[name] for name in reads if name in dataset.present] for reads in readers]
    masks = [torch.stack(present).all(0) for present in absent if present]
    if (smallest > 1 and not masks) or not _refuses_one_row(method, normed, batch, student, teachers):
        return
    who = ", ".join(map(repr, normed))
    if smallest == 1:
        what = f"batch_size is {order.batch_size}" if order.batch_size == 1 else "there is one training row"
        raise SettingError(
            f"{what}, and {who} normalises by the batch, which needs at least 2 rows: set batch_size to 2 or more, and "
            "train on at least 2 rows"
        )
    for epoch in range(epochs):
        for step, rows in enumerate(order.epoch(epoch)):
            if any(int(mask[rows].sum()) == 1 for mask in masks):
                raise SettingError(
                    f"in step {step} of epoch {epoch}, only one row has the modalities that {who} reads, which "
                    f"normalises by the batch and needs at least 2 rows: set a batch_size larger than "
                    f"{order.batch_size}"
                )


@torch.no_grad()
def _refuses_one_row(
    method: Method, training: Mapping[str, nn.Module], batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]
) -> bool:
    single = replace(batch.select(torch.zeros(1, dtype=torch.long, device=batch.ids.device)), present={})
    buffers = {buffer: buffer.clone() for module in training.values() for buffer in module.buffers()}
    modes = {layer: layer.training for module in training.values() for layer in module.modules()}
    with torch.random.fork_rng(devices=[]):
        try:
            for module in training.values():
                module.train()
            method(single, student, teachers, Progress())
        except (ValueError, RuntimeError) as error:
            return "more than 1 value per channel" in str(error)
        finally:
            for buffer, before in buffers.items():
                buffer.copy_(before)
            for layer, mode in modes.items():
                layer.training = mode
    return False


def check_data(dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Faults of views and classes, and the data without failing views, so that later checks can run."""
    views = _view_faults(dataset)
    faults = [f"data: {fault}" for fault in [*views, *_class_faults(dataset)]]
    return (replace(dataset, augmentation=None) if views else dataset), faults


def _view_faults(dataset: Dataset) -> list[str]:
    """Faults of the augmentation: in its settings, or in its result on two rows."""
    faults = dataset.augmentation.faults(dataset.inputs) if isinstance(dataset.augmentation, Variations) else []
    if faults:
        return faults
    rows = dataset.splits["train"][:2]
    try:
        dataset.batch(rows, view=torch.ones_like(rows))
    except CrossdistillError as error:
        return [str(error)]
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        return [f"augmentation: it fails on {len(rows)} rows: {type(error).__name__}: {' '.join(str(error).split())}"]
    return []


def check_learner(stage: Stage, method: Method, student: Live, dataset: Dataset) -> list[str]:
    """Faults: logits that do not match the data's classes, and a best epoch without scored validation rows."""
    faults, network = [], student.network
    logits, classes = student.spec.logits, len(dataset.classes)
    if logits is not None and classes and logits[0] != classes:
        faults.append(
            f"{network.name}, the learner, gives logits of {logits[0]} classes, and data {dataset.name!r} has "
            f"{classes} classes; give it a last layer of {classes} outputs"
        )
    rows = dataset.splits["validation"]
    judging = seen_rows(dataset, network)[rows]
    if method.judged_by_targets:
        judging &= has_target(dataset.targets[rows])
    if stage.select == "best" and stage.epochs and not bool(judging.any()):
        wanted = " and that has a target" if method.judged_by_targets else ""
        faults.append(
            f"select='best': no row of the validation split is one that {network.name} reads{wanted}, so epochs cannot "
            "be compared; put such rows there, or set select='last'"
        )
    return faults


def seen_rows(dataset: Dataset, network: Network) -> Bool[Tensor, " N"]:
    """The rows that a network computes, as a mask: those with all its inputs, or with any input if one is enough."""
    there = torch.ones(len(dataset), dtype=torch.bool)
    # Stored outputs read no modality.
    masks = [dataset.present.get(modality, there) for modality in network.reads] or [there]
    together = torch.stack(masks)
    return together.all(0) if network.needs == "all" else together.any(0)


@torch.no_grad()
def trial_step(
    stage: Stage, method: Method, batch: Batch, student: Teacher, teachers: Mapping[str, Teacher]
) -> tuple[str, ...]:
    """Run one step and one validation on a few rows and restore all state; returns the groups of the terms, in order.

    Raises:
        ShapeError: torch raised an error; names the shapes that the method received.
        CrossdistillError: raised by the method, a network or the weighting.
    """
    if type(method).measure is not Method.measure:
        method = copy.deepcopy(method)
    method.eval()
    with torch.random.fork_rng(devices=[]):
        try:
            method.measure([batch], student, teachers)
            step: Step = method(batch, student, teachers, Progress())
            method.validate(batch, student, teachers)
        except CrossdistillError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ShapeError(
                f"{stage.method.name} fails on {len(batch)} rows: {' '.join(str(error).split())}. Its arguments were "
                f"{_outputs_of([student, *teachers.values()])}, and targets {_shape(batch.targets)}"
            ) from error
        groups = tuple(dict.fromkeys(term.group for term in step.terms.values()))
        if not groups:
            raise SettingError(
                f"{stage.method.name} returned a Step without terms; a step needs at least one loss term"
            )
        stage.weighting.build(groups)
    return groups


def _outputs_of(sources: Sequence[Teacher]) -> str:
    return "; ".join(f"{source.name!r} with {_sizes(source.spec)}" for source in sources)


def _sizes(spec: OutputSpec) -> str:
    parts = {"logits": spec.logits, "embedding": spec.embedding, **spec.features}
    return ", ".join(f"{name} {shape}" for name, shape in parts.items() if shape is not None) or "no outputs"


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def graph_faults(stage: Stage, method: Method, device: torch.device) -> list[str]:
    """Reasons why the steps of a stage cannot be captured in a graph, as far as known before training."""
    if not stage.cuda_graphs:
        return []
    reasons = {
        f"this device is {device.type}": device.type != "cuda",
        f"{stage.method.name} changes state in after_step": type(method).after_step is not Method.after_step,
        # A captured step would repeat the draw of the step in which it was captured.
        f"{stage.method.name} leaves out other teachers in each step": bool(getattr(stage.method, "drop", 0.0)),
        f"the weighting {stage.weighting.name} keeps momenta of its own": stage.weighting.plain_sgd,
    }
    return [f"cuda_graphs: {why}; set cuda_graphs to false" for why, holds in reasons.items() if holds]

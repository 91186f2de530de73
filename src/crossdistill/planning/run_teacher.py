"""A student of an earlier run as a teacher, by `run:FOLDER`: its classes in the data's order, and its preparation."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.backends.classes import match_classes
from crossdistill.backends.names import Built
from crossdistill.backends.tune import tune
from crossdistill.batch import InputSpec
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendering import Rendering, rendering_of
from crossdistill.errors import SettingError
from crossdistill.network import Network
from crossdistill.student import load_student


def run_teacher(folder: str, member: str, how: str | None, dataset: Dataset) -> Built:
    """The network of a run's or a student's folder, frozen unless `how` (the setting `tune`) says what trains.

    It reads the data as they are where they are prepared as in its run, or else by the preparation of its run.

    Raises:
        RunError: the folder holds no student.
        SettingError: its classes are not those of the data, or the data cannot be prepared as it needs them.
    """
    student = load_student(Path(folder))
    match = match_classes(student.classes, dataset.classes)
    if not match.fits or student.task != dataset.task:
        what = (
            match.said
            if student.task == dataset.task
            else f"it learnt {student.task}, and the data have {dataset.task}"
        )
        raise SettingError(f"run:{folder}: {what}; name a run on data of the same classes, or another network")
    reads, renderings = list[str](), dict[str, Rendering]()
    for name in student.network.reads:
        base = name.partition("@")[0]
        known = dataset.input_specs.get(name)
        if "@" not in name and known is not None and _same(known, student.inputs[name]):
            reads.append(name)
            continue
        rendering = rendering_of(student.inputs[name], name) if base in dataset.inputs else None
        if rendering is None:
            found = "the data have no such input" if base not in dataset.inputs else "the data are prepared otherwise"
            raise SettingError(
                f"run:{folder} reads {base!r} of shape {tuple(student.inputs[name].shape)}, and {found}; prepare the "
                "data as in that run, or name another teacher"
            )
        reads.append(f"{base}@{member}")
        renderings[reads[-1]] = rendering
    module = student.network.module
    switched = tune(module, how or "frozen", f"run:{folder}")
    adapter = None if match.order is None else partial(in_order, order=match.order)
    taps = student.network.taps
    network = Network(module, reads, taps, output_adapter=adapter, renderings=renderings or None)
    prepared = "" if not renderings else "; it reads the data as they were prepared in its run"
    return Built(network, ("; ".join([f"{match.said}{prepared}", *switched]),))


def in_order(result: Tensor | Mapping[str, Tensor], order: tuple[int, ...]) -> dict[str, Tensor]:
    """Outputs whose logits are in the order of the data's classes."""
    given = {"logits": result} if isinstance(result, Tensor) else dict(result)
    return {**given, "logits": given["logits"][:, list(order)]}


def _same(ours: InputSpec, theirs: InputSpec) -> bool:
    """Whether two inputs are prepared alike."""
    if (tuple(ours.shape), dict(ours.options)) != (tuple(theirs.shape), dict(theirs.options)):
        return False
    if set(ours.parameters) != set(theirs.parameters):
        return False
    return all(torch.equal(value, theirs.parameters[name]) for name, value in ours.parameters.items())

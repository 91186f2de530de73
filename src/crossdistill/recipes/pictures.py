"""Shared parts of the recipes for sets of pictures: networks by name, and SGD with milestones."""

from collections.abc import Mapping
from typing import Any

from crossdistill.backends.names import backend_of
from crossdistill.data.config import DataConfig
from crossdistill.methods.kd import KD
from crossdistill.models import find_model
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes.setup import ExperimentSetup, Kind, Length
from crossdistill.stage import OptimizerConfig

IMAGE = "image"
CNN = "cnn"
"""Name of the teacher of pictures."""

Teachers = Mapping[str, Any]
"""Teachers by their names: a network's name or its settings; None leaves the default one out."""


def pictures_setup(
    data: DataConfig,
    *,
    student: str,
    default: str,
    teacher: str,
    teachers: Teachers,
    batch_size: int,
    length: Length,
    student_length: Length,
    kd: KD,
    published: Mapping[str, Mapping[str, Any]],
) -> ExperimentSetup:
    """Data of pictures with one student and named teachers, which train from labels unless a name loads their weights.

    `default` is the network of a student that is named by its modality, `image`. `teacher` is the network of the
    teacher `cnn`, unless `teachers` has another one.
    """
    # A comparison names the student by its modality.
    student = default if student == IMAGE else student
    named = {CNN: teacher, **teachers}
    networks = {name: _teacher(wanted, teacher) for name, wanted in named.items() if wanted is not None}
    return ExperimentSetup(
        data=data,
        networks={IMAGE: NetworkConfig(model=student)},
        named_teachers=networks,
        proxy=NetworkConfig(model=teacher),
        batch_size=batch_size,
        supervised=length,
        collaborate=student_length,
        # Masks, gates and the like are not of these papers: Adam at the rate of theirs.
        specialise=Length(epochs=max(1, length.epochs // 5), learning_rate=1e-4),
        distil=student_length,
        kd=kd,
        published={**published, **_hint(networks, student)},
    )


def _hint(teachers: Mapping[str, NetworkConfig], student: str) -> dict[str, dict[str, Any]]:
    """FitNets' hint as published, between the second stages, where the table of models knows all of them."""
    middles = {name: _middle(network) for name, network in {IMAGE: NetworkConfig(model=student), **teachers}.items()}
    if not all(middles.values()):
        return {}
    taps = {name: (middle,) for name, middle in middles.items()}
    return {"hint": {"taps": taps.pop(IMAGE), "teacher_taps": taps}}


def _middle(network: NetworkConfig) -> str | None:
    return find_model(network.model).middle if backend_of(network.model) is None else None


def named_only(teachers: Kind | Teachers | None) -> tuple[Kind | None, Teachers]:
    """A recipe's argument `teachers` as the kind of teachers and the named ones."""
    return (None, teachers) if isinstance(teachers, Mapping) else (teachers, {})


def sgd(epochs: int, learning_rate: float, weight_decay: float, milestones: tuple[float, ...]) -> Length:
    """SGD with momentum 0.9 and weight decay on all weights, its rate divided by ten at parts of the stage."""
    settings = OptimizerConfig(
        name="sgd", learning_rate=learning_rate, momentum=0.9, weight_decay=weight_decay, gamma=0.1
    )
    return Length(epochs=epochs, learning_rate=learning_rate, settings=settings, milestones=milestones)


def _teacher(wanted: Any, default: str) -> NetworkConfig:
    settings = {"model": wanted} if isinstance(wanted, str) else dict(wanted)
    return NetworkConfig.model_validate({"model": default, **settings})

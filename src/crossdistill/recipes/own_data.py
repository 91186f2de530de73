"""Networks and lengths of training for a user's own data, from the shapes of its modalities."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import nn

from crossdistill.backends.names import RUN, backend_of, full_name, with_file
from crossdistill.batch import InputSpec
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendering import TextRendering, rendering_of
from crossdistill.data.targets import has_target
from crossdistill.errors import SettingError, nearest
from crossdistill.models import MODELS, find_model
from crossdistill.models.own_network import as_network
from crossdistill.network import Network
from crossdistill.overrides import sentences
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes.setup import ExperimentSetup, Length, kd_for, route_for

ORDER = ("image", "log-mel", "text", "array")
"""Kinds of inputs, in the order in which the student's modality is chosen by default."""
SMALL = {"image": "cifar-resnet8", "log-mel": "cifar-resnet8", "text": "text-cnn", "array": "mlp"}
LARGE = {"image": "cifar-resnet20", "log-mel": "cifar-resnet20", "text": "text-cnn", "array": "mlp"}
WIDER: Mapping[str, Mapping[str, Any]] = {"text-cnn": {"width": 192}, "mlp": {"width": 512}}
"""Options of the large networks; a residual network is larger by its depth."""
SIDE = 32
"""Pictures and spectrograms are brought to about this size by the stride of the first convolution."""
BATCH_SIZE = 64
STEPS = 3000
"""Optimizer steps of a stage by default, in epochs between the next two numbers."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 60
LEARNING_RATE = 2e-3
LARGER = "large"
"""Name of the teacher of data of one modality: a larger network, trained from labels."""

AnyNetwork = NetworkConfig | Network | nn.Module
"""A network of a recipe; a bare module reads the only modality of the data."""


def kind_of(spec: InputSpec) -> str:
    """The kind of an input for the choice of a network: that of its specification, or that of its shape."""
    if spec.kind in SMALL and spec.kind != "array":
        return spec.kind
    # Arrays of the shape of a picture are read as one.
    return "image" if len(spec.shape) == 3 else "array"


def default_network(modality: str, spec: InputSpec, *, large: bool = False) -> NetworkConfig:
    """A network of the table of models for an input.

    Raises:
        SettingError: no network of the table reads inputs of this shape.
    """
    kind = kind_of(spec)
    if kind == "array" and len(spec.shape) != 1:
        raise SettingError(
            f"no network of the table reads {modality!r}, whose examples have the shape {spec.shape}; name one, as in "
            "--set student=package.module:Class"
        )
    model = (LARGE if large else SMALL)[kind]
    return fitted(model, modality, spec, WIDER.get(model, {}) if large else {})


def fitted(model: str, modality: str, spec: InputSpec, options: Mapping[str, Any] = {}) -> NetworkConfig:
    """A network by name for an input: models of the table that have them get the number of channels, and so on."""
    table, _ = with_file(model)
    if table not in MODELS:
        return NetworkConfig(model=model, options=options, reads=(modality,) if ":" not in model else None)
    known = inspect.signature(find_model(table).make()).parameters
    derived: dict[str, Any] = {}
    if "channels" in known and len(spec.shape) == 3:
        derived["channels"] = spec.shape[0]
    if "stride" in known and len(spec.shape) == 3:
        side = math.sqrt(spec.shape[1] * spec.shape[2])
        derived["stride"] = 2 ** max(0, round(math.log2(side / SIDE)))
    if "features" in known and len(spec.shape) == 1:
        derived["features"] = spec.shape[0]
    if "vocabulary" in known:
        rendering = rendering_of(spec, modality)
        if isinstance(rendering, TextRendering):
            derived["vocabulary"] = rendering.vocabulary
    return NetworkConfig(model=model, options={**derived, **options}, reads=(modality,))


def default_modality(dataset: Dataset) -> str:
    """The student's modality where nothing says it: the first picture, else recording, text, array."""
    return min(dataset.inputs, key=lambda name: ORDER.index(kind_of(dataset.input_specs[name])))


def student_of(dataset: Dataset, wanted: str | AnyNetwork | None) -> tuple[str, NetworkConfig | Network]:
    """The student's modality and its network: `wanted` is a modality, a network's name, or a network.

    Raises:
        SettingError: it is none of them, or reads another modality than the data have.
    """
    if wanted is not None and not isinstance(wanted, str):
        network = _wrapped(wanted, dataset)
        reads = network.reads if isinstance(network, Network) else network.modalities
        return reads[0].partition("@")[0], network
    if wanted is None or wanted in dataset.inputs:
        modality = wanted or default_modality(dataset)
        return modality, default_network(modality, dataset.input_specs[modality])
    if ":" not in wanted and wanted not in MODELS:
        raise SettingError(f"student={wanted}: no modality or network is called that; {_near(wanted, dataset)}")
    modality = modality_for(dataset, wanted)
    return modality, fitted(wanted, modality, dataset.input_specs[modality])


def modality_for(dataset: Dataset, network: str) -> str:
    """The modality of the data that a named network reads: the one that it reads by default, or the only one.

    Raises:
        SettingError: there are several, and none that it reads by default.
    """
    try:
        reads = NetworkConfig(model=network).modalities
    except ValidationError as error:
        raise SettingError(f"network {network!r}: {'; '.join(sentences(error))}") from error
    for name in reads:
        if name.partition("@")[0] in dataset.inputs:
            return name.partition("@")[0]
    kinds = {name: kind_of(spec) for name, spec in dataset.input_specs.items()}
    alike = [name for name in kinds if not reads or SMALL.get(kinds[name]) == network or len(kinds) == 1]
    if len(alike) == 1:
        return alike[0]
    raise SettingError(
        f"{network} reads {', '.join(reads) or 'one modality'}, and the data have {', '.join(dataset.inputs)}; say "
        f"which in Python, as NetworkConfig(model={network!r}, reads=[MODALITY]), or call the input as the network does"
    )


def multimodal(dataset: Dataset) -> NetworkConfig | None:
    """The late fusion of all modalities; None for one modality."""
    if len(dataset.inputs) < 2:
        return None
    # As small as the students: masks grow with the square of the width of all embeddings together.
    networks = {name: default_network(name, dataset.input_specs[name]) for name in dataset.inputs}
    encoders = {name: {"model": net.model, "options": dict(net.options)} for name, net in networks.items()}
    return NetworkConfig(model="fusion", reads=tuple(dataset.inputs), options={"encoders": encoders})


def default_epochs(rows: int) -> int:
    """Epochs of a stage by default, so that small data get more of them."""
    steps = max(1, -(-rows // BATCH_SIZE))
    return max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(STEPS / steps)))


def setup_for(
    data: DataConfig | Dataset,
    dataset: Dataset,
    *,
    student: str | AnyNetwork | None = None,
    teachers: Mapping[str, str | AnyNetwork | Mapping[str, Any]] | None = None,
    epochs: int | None = None,
    labelled: float = 1.0,
) -> ExperimentSetup:
    """A setup for a user's own data.

    Students are small networks of the table of models, by the kind and shape of each modality. Their teachers are
    those that `teachers` names; without any, the networks of the other modalities and one that reads them all, or, for
    data of one modality, a larger network.

    Args:
        data: what recipes hold: settings, or the data set itself.
        dataset: the loaded data.
        student: a modality, a network's name (`timm:NAME`, a name of `list models`, ...), or a network.
        teachers: networks by the names of the teachers: a name, settings with it as `model`, or a network.
        epochs: of every stage; by default from the number of training rows.
        labelled: fraction of the training labels, for the weights of methods.

    Raises:
        SettingError: a name is unknown, or no network of the table reads a modality.
    """
    modality, network = student_of(dataset, student)
    names = [modality, *(name for name in dataset.inputs if name != modality)]
    others = {} if teachers else {name: default_network(name, dataset.input_specs[name]) for name in names[1:]}
    named = {name: _teacher(dataset, name, network) for name, network in (teachers or {}).items()}
    if not named and not others and has_labels(dataset):
        named = {LARGER: default_network(modality, dataset.input_specs[modality], large=True)}
    length = Length(
        epochs=default_epochs(len(dataset.splits["train"])) if epochs is None else epochs, learning_rate=LEARNING_RATE
    )
    return ExperimentSetup(
        data=data,
        networks={modality: network, **others},
        multimodal=None if teachers else multimodal(dataset),
        named_teachers=named,
        frozen_teachers=frozenset(name for name, network in named.items() if _is_frozen(network)),
        batch_size=BATCH_SIZE,
        supervised=length,
        collaborate=length,
        specialise=Length(epochs=max(1, length.epochs // 5), learning_rate=1e-4),
        distil=length,
        kd=kd_for(labelled),
        route=route_for(labelled),
    )


def has_labels(dataset: Dataset) -> bool:
    """Whether any training row has a target."""
    return bool(has_target(dataset.targets[dataset.splits["train"]]).any())


def check_labels(dataset: Dataset, teachers: Mapping[str, Any]) -> None:
    """Check that something can teach a student: labels, or teachers that need none.

    Raises:
        SettingError: there is neither.
    """
    if not has_labels(dataset) and not teachers:
        raise SettingError(
            f"data {dataset.name!r} have no labels, and no teacher is named; name the column of the labels "
            "(--set data.target=COLUMN), or a pre-trained teacher (transformers:FOLDER)"
        )


def _is_frozen(network: NetworkConfig | Network) -> bool:
    """Whether a program's network has no weight that trains; a plan finds out of those that a name loads."""
    return isinstance(network, Network) and network.is_made and not any(p.requires_grad for p in network.parameters())


def _wrapped(network: AnyNetwork, dataset: Dataset) -> NetworkConfig | Network:
    try:
        wrapped: NetworkConfig | Network = as_network(network, tuple(dataset.inputs))
    except ValueError as error:
        raise SettingError(str(error)) from error
    return wrapped


def _teacher(dataset: Dataset, name: str, network: str | AnyNetwork | Mapping[str, Any]) -> NetworkConfig | Network:
    if isinstance(network, Mapping):
        return _with_settings(dataset, name, network)
    if not isinstance(network, str):
        return _wrapped(network, dataset)
    network = full_name(network)
    if backend_of(network) == RUN:
        return NetworkConfig(model=network)
    modality = modality_for(dataset, network)
    return fitted(network, modality, dataset.input_specs[modality])


def _with_settings(dataset: Dataset, name: str, settings: Mapping[str, Any]) -> NetworkConfig:
    """A named teacher with settings besides its name; those of the network for the data stay where none is given."""
    rest = {key: value for key, value in settings.items() if key != "model"}
    if "model" not in settings:
        raise SettingError(f"teachers.{name} has settings ({', '.join(rest)}) and no network: set teachers.{name}=NAME")
    base = dict(_teacher(dataset, name, str(settings["model"])))
    options = {**base["options"], **rest.get("options", {})}
    try:
        return NetworkConfig.model_validate({**base, **rest, "options": options})
    except ValidationError as error:
        raise SettingError(f"teachers.{name}: {'; '.join(sentences(error, NetworkConfig, settings))}") from error


def _near(wanted: str, dataset: Dataset) -> str:
    return f"{nearest(wanted, [*dataset.inputs, *MODELS])}. Networks of other libraries: timm:NAME, transformers:FOLDER"

"""The table of models: published architectures and smaller versions of them, one family per file."""

import inspect
import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from crossdistill.errors import SettingError, nearest
from crossdistill.models.entry import Model
from crossdistill.models.pictures import PICTURES
from crossdistill.network import Network


def _activated(*layers: str) -> tuple[str, ...]:
    """Each layer, and the activation after it: some methods compare features before it, others after."""
    return tuple(tap for layer in layers for tap in (layer, f"{layer}_relu"))


BLOCKS: Mapping[str, int] = {"head_width": 64, "expansion": 4}
"""Blocks of HuBERT's proportions."""

MODELS: Mapping[str, Model] = {
    "lenet5": Model(
        "crossdistill.models.lenet5:LeNet5",
        ("image",),
        (*_activated("conv1", "conv2", "conv3"), "flatten_identity", *_activated("fc1"), "fc2"),
        "LeCun et al. 1998 as in MST-Distill: 28x28 grey pictures",
    ),
    "three-layer-cnn-a": Model(
        "crossdistill.models.three_layer_cnn:ThreeLayerCNNA",
        ("audio",),
        (*_activated("conv1", "conv2", "conv3"), "conv3_maxpool", "conv3_maxpool_flatten", "fc1"),
        "MST-Distill's audio network: 112x112 log-mel spectrograms",
    ),
    "cnn-i": Model(
        "crossdistill.models.cnn_i:CNNI",
        ("image", "audio"),
        (
            *_activated("image.conv1", "image.conv2"),
            *_activated(*(f"audio.conv{number}" for number in range(1, 6))),
            *("concat_identity", "fc1", "fc2"),
        ),
        "MST-Distill's multimodal network for AV-MNIST",
    ),
    "small-image": Model(
        "crossdistill.models.small:SmallImage",
        ("image",),
        _activated("conv1", "conv2", "fc1"),
        "a small convolutional network for the 8x8 digits of av-digits",
    ),
    "small-audio": Model(
        "crossdistill.models.small:SmallAudio",
        ("audio",),
        _activated("conv1", "conv2", "conv3", "fc1"),
        "a small convolutional network for the 32x32 log-mel spectrograms of av-digits",
    ),
    "small-mm": Model(
        "crossdistill.models.small:SmallMultimodal",
        ("image", "audio"),
        (
            *_activated("image_conv1", "image_conv2"),
            *_activated("audio_conv1", "audio_conv2", "audio_conv3"),
            *("concat_identity", *_activated("fc1")),
        ),
        "a small network of two branches for av-digits' images and spectrograms",
    ),
    **PICTURES,
    "mlp": Model(
        "crossdistill.models.mlp:MLP",
        ("numbers",),
        _activated("fc1", "fc2"),
        "a multilayer perceptron for columns of numbers",
        layers=("fc1", "fc2"),
    ),
    "text-cnn": Model(
        "crossdistill.models.text_cnn:TextCNN",
        ("text",),
        (*_activated("conv1", "conv2"), "pool", *_activated("fc1")),
        "Kim 2014: a small convolutional network over tokens",
        layers=("pool", "fc1"),
    ),
    "fusion": Model(
        "crossdistill.models.fusion:Fusion",
        ("image", "audio"),
        ("concat", *_activated("fc1")),
        "encoders of any modalities, their embeddings concatenated and classified",
        layers=("concat", "fc1"),
    ),
    "hubert-student-2": Model(
        "crossdistill.backends.hubert_student:hubert_student",
        ("audio",),
        ("projection", "layer1", "layer2"),
        "DistilHuBERT's student of 2 blocks for 16 kHz waves; option initial: a teacher whose weights it copies",
        {"layers": 2, **BLOCKS},
        revision=1,
    ),
    "hubert-student-2-wide": Model(
        "crossdistill.backends.hubert_student:hubert_student",
        ("audio",),
        ("projection", "layer1", "layer2"),
        "the student of 2 blocks of width 1,536, with 6 heads (Ritter-Gutierrez et al. 2025); options as the others",
        {"layers": 2, "width": 1536, "head_width": 256, "expansion": 2},
        revision=1,
    ),
    "hubert-student-3": Model(
        "crossdistill.backends.hubert_student:hubert_student",
        ("audio",),
        ("projection", "layer1", "layer2", "layer3"),
        "DistilHuBERT's student of 3 blocks for 16 kHz waves; option initial: a teacher whose weights it copies",
        {"layers": 3, **BLOCKS},
        revision=1,
    ),
    "hubert-student-4": Model(
        "crossdistill.backends.hubert_student:hubert_student",
        ("audio",),
        ("projection", "layer1", "layer2", "layer3", "layer4"),
        "DistilHuBERT's student of 4 blocks for 16 kHz waves; option initial: a teacher whose weights it copies",
        {"layers": 4, **BLOCKS},
        revision=1,
    ),
}


ENTRY_POINTS = "crossdistill.models"


def list_models() -> list[str]:
    """Names of all models: those of the table, then those of other packages."""
    return list(dict.fromkeys([*MODELS, *(point.name for point in entry_points(group=ENTRY_POINTS))]))


def is_model(name: str) -> bool:
    """Whether the table or an installed package has a model of that name; no package is imported."""
    return name in list_models()


def find_model(name: str) -> Model:
    """An entry of the table, or of another package's entry point in the group `crossdistill.models`.

    Raises:
        SettingError: no model has that name (the message names the nearest), or its package is broken.
    """
    if name in MODELS:
        return MODELS[name]
    others = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in others:
        raise SettingError(f"no model is called {name!r}; {nearest(name, [*MODELS, *others])}")
    try:
        loaded = others[name].load()
    except Exception as error:  # code of another package may raise any error
        raise SettingError(
            f"model {name!r}: {others[name].value} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, Model):
        raise SettingError(f"the entry point {name!r} of {others[name].value!r} is no crossdistill.models.Model")
    return loaded


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check options from a file against the model's signature: names and types.

    Raises:
        SettingError: no such option, or a value whose type differs from its annotation.
    """
    made = find_model(name).make()
    known = _options_of(name)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    hints = get_type_hints(made.__init__ if inspect.isclass(made) else made)
    for option, value in options.items():
        if option not in known:
            raise SettingError(f"model {name!r} has no option {option!r}; {nearest(option, known)}")
        try:
            # As JSON, in which tuples are written as lists.
            TypeAdapter(hints.get(option, Any)).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise SettingError(f"model {name!r}: option {option!r}: {error.errors()[0]['msg']}") from error
        except PydanticSchemaGenerationError:
            continue


def _options_of(name: str) -> dict[str, inspect.Parameter]:
    """The options that a model leaves open."""
    model = find_model(name)
    return {
        key: parameter
        for key, parameter in inspect.signature(model.make()).parameters.items()
        if key not in model.fixed
    }


def build_network(name: str, reads: tuple[str, ...] | None = None, **options: Any) -> Network:
    """A freshly initialised network of the table; `reads` names the data's modalities where they differ.

    Raises:
        SettingError: no such model, or an unknown option.
    """
    model = find_model(name)
    known = _options_of(name)
    unknown = [option for option in options if option not in known]
    if unknown and not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        raise SettingError(f"model {name!r} has no option {unknown[0]!r}; {nearest(unknown[0], known)}")
    try:
        module = model.module(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"model {name!r} cannot be built with the options {options}: {error}") from error
    network = Network(module, reads or model.modalities, model.taps)
    network.activations = model.after
    return network

"""The table of models: published architectures and smaller versions of them, one family per file."""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import nn

from crossdistill.errors import SettingError, nearest
from crossdistill.network import Network


@dataclass(frozen=True, slots=True)
class Model:
    """An architecture: its import path, its default modalities, its named taps, and a description of one line."""

    source: str
    modalities: tuple[str, ...]
    taps: tuple[str, ...]
    about: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `source` that this entry determines."""
    layers: tuple[str, ...] = ()
    """The intermediate and the late layer, before their activation, that masks and hints act on by default."""
    maps: tuple[str, ...] = ()
    """The layers with spatial features, before their activation, shallow first."""

    def activated(self, layer: str) -> str:
        """The tap after the activation of a layer; the layer itself where there is none."""
        after = layer.partition(".")[0] if layer.endswith(".sum") else f"{layer}_relu"
        return after if after in self.taps else layer

    def make(self) -> Callable[..., nn.Module]:
        """The module's class, or the function that builds it."""
        name, _, attribute = self.source.partition(":")
        maker: Callable[..., nn.Module] = getattr(importlib.import_module(name), attribute)
        return maker

    def module(self, **options: Any) -> nn.Module:
        """The bare module, freshly initialised."""
        return self.make()(**{**options, **self.fixed})


def _activated(*layers: str) -> tuple[str, ...]:
    """Each layer, and the activation after it: some methods compare features before it, others after."""
    return tuple(tap for layer in layers for tap in (layer, f"{layer}_relu"))


def _stages(depth: int) -> tuple[str, ...]:
    """The stages of a residual network before and after their last activation, and its embedding."""
    last = (depth - 2) // 6 - 1
    return (
        *(tap for stage in (1, 2, 3) for tap in (f"layer{stage}.{last}.sum", f"layer{stage}")),
        "avgpool",
        "flatten",
    )


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
    "cifar-resnet8": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(8),
        "He et al. 2016: a residual network of 8 layers for small pictures",
        {"depth": 8},
        ("avgpool", "flatten"),
        _stages(8)[0:6:2],
    ),
    "cifar-resnet14": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(14),
        "He et al. 2016: a residual network of 14 layers for small pictures",
        {"depth": 14},
        ("avgpool", "flatten"),
        _stages(14)[0:6:2],
    ),
    "cifar-resnet20": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(20),
        "He et al. 2016: a residual network of 20 layers for small pictures",
        {"depth": 20},
        ("avgpool", "flatten"),
        _stages(20)[0:6:2],
    ),
    "cifar-resnet32": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(32),
        "He et al. 2016: a residual network of 32 layers for small pictures",
        {"depth": 32},
        ("avgpool", "flatten"),
        _stages(32)[0:6:2],
    ),
    "cifar-resnet44": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(44),
        "He et al. 2016: a residual network of 44 layers for small pictures",
        {"depth": 44},
        ("avgpool", "flatten"),
        _stages(44)[0:6:2],
    ),
    "cifar-resnet56": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(56),
        "He et al. 2016: a residual network of 56 layers for small pictures",
        {"depth": 56},
        ("avgpool", "flatten"),
        _stages(56)[0:6:2],
    ),
    "cifar-resnet110": Model(
        "crossdistill.models.cifar_resnet:CifarResNet",
        ("image",),
        _stages(110),
        "He et al. 2016: a residual network of 110 layers for small pictures",
        {"depth": 110},
        ("avgpool", "flatten"),
        _stages(110)[0:6:2],
    ),
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
    return Network(module, reads or model.modalities, model.taps)

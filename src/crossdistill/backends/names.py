"""Networks by name: `transformers:`, `timm:`, `open_clip:`, `onnx:`, `bank:`, `module:Class`, or of the table."""

import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from crossdistill.backends.classes import Match, match_classes
from crossdistill.backends.pretrained import Loaded, Pretrained
from crossdistill.backends.text_head import ClassTexts, TextHead
from crossdistill.backends.tune import tune
from crossdistill.backends.zero_shot import class_texts
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError, nearest
from crossdistill.models import find_model, is_model, list_models
from crossdistill.network import Network

BACKENDS: Mapping[str, str] = {
    "transformers": "crossdistill.backends.transformers",
    "timm": "crossdistill.backends.timm",
    "open_clip": "crossdistill.backends.open_clip",
    "onnx": "crossdistill.backends.onnx",
    "bank": "crossdistill.backends.from_bank",
    "resemblyzer": "crossdistill.backends.resemblyzer",
    "torchcrepe": "crossdistill.backends.torchcrepe",
}
"""Libraries by the prefix of their names, each with the module here that loads from it, imported on first use."""

WHOLE = ("resemblyzer",)
"""Libraries of one network, whose name is the prefix alone: `resemblyzer:`."""

RUN = "run"
"""Prefix of the folder of a run, whose student is the network: a plan loads it."""

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Built:
    """A network, with lines that say what was decided for it."""

    network: Network
    notes: tuple[str, ...] = ()


def backend_of(name: str) -> str | None:
    """The library that a name belongs to, "module" for `module:Class`; None for a name of the table of models."""
    prefix, colon, rest = name.partition(":")
    if not colon:
        return None
    if prefix in BACKENDS or prefix == RUN:
        return prefix if rest or prefix in WHOLE else None
    return "module" if re.fullmatch(r"[A-Za-z_][\w.]*", prefix) and rest.isidentifier() else None


def full_name(name: str) -> str:
    """The name of a network, of a folder of a run `run:FOLDER`."""
    holds = any(os.path.isfile(os.path.join(name, *path)) for path in (("student", "config.json"), ("recipe.yaml",)))
    return f"{RUN}:{name}" if holds else name


def with_file(name: str) -> tuple[str, str | None]:
    """A name of the table of models and the file of its weights, of `NAME:FILE`; other names have no file."""
    model, _, file = name.partition(":")
    return (model, file) if file and backend_of(name) is None and is_model(model) else (name, None)


def settings_of(value: Any) -> Any:
    """A network's settings: of a text its name, and of `MODEL:FILE` its name and weights; other values are unchanged.

    Raises:
        ValueError: the name and the settings name weights both.
    """
    if isinstance(value, Mapping) and list(value.items()) in [[(name, None)] for name in WHOLE]:
        # YAML reads `resemblyzer:` as a key without a value.
        value = f"{next(iter(value))}:"
    values = {"model": value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or not isinstance(values.get("model"), str):
        return values
    values = {**values, "model": full_name(values["model"])}
    model, file = with_file(values["model"])
    if file is None:
        return values
    if values.get("weights") is not None:
        raise ValueError(f"{values['model']} names its weights, and `weights` names {values['weights']}; give one")
    return {**values, "model": model, "weights": file}


def check_name(name: str) -> None:
    """Check the form of a name, and that the table of models has it where it is none of another library.

    Raises:
        SettingError: it is none; names the nearest, and the prefixes.
    """
    prefix, colon, _ = name.partition(":")
    backend = backend_of(name)
    if backend == "module" and importlib.util.find_spec(prefix.partition(".")[0]) is None:
        backend = None
    if backend is not None:
        return
    if colon:
        known = ", ".join([*(f"{one}:NAME" for one in BACKENDS), f"{RUN}:FOLDER"])
        raise SettingError(
            f"no network is called {name!r}; {nearest(prefix, BACKENDS)}. Networks are named {known}, "
            "package.module:Class, or as crossdistill list models says, also with a file of weights: MODEL:FILE"
        )
    if os.path.isfile(os.path.join(name, "config.json")):
        raise SettingError(
            f"{name} is a folder and no name of a network; if transformers saved it: transformers:{name}"
        )
    if not is_model(name) and os.sep in name:
        raise SettingError(
            f"{name}: there is no such run or folder of a network; a folder of transformers is transformers:FOLDER, "
            f"a run's folder is run:FOLDER, and weights of a network in the table are MODEL:FILE"
        )
    find_model(name)


def modalities(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities that a network reads where the recipe does not say; empty if that depends on the data.

    Raises:
        SettingError: the network cannot be found.
    """
    backend = backend_of(name)
    if backend is None:
        return find_model(name).modalities
    if backend in ("module", "onnx", "bank", RUN):
        return ()
    kind = importlib.import_module(BACKENDS[backend]).modality_of(name.partition(":")[2], options)
    return (str(kind),)


def build(
    name: str,
    options: Mapping[str, Any],
    reads: Sequence[str] | None,
    how: str | None,
    dtype: Dtype,
    *,
    member: str,
    dataset: Dataset,
    student: bool,
) -> Built:
    """The network of another library for these data; weights that were not trained come from the random state.

    `how` is the setting `tune`. By default a student trains, a teacher is frozen if it has a class for each of the
    data, and only its head trains otherwise.

    Raises:
        SettingError: it cannot be found or loaded, does not fit the data, or an option is unknown.
        MissingExtraError: a package is not installed.
    """
    backend = backend_of(name)
    if backend == "module":
        return _own_class(name, options, reads, how, dataset)
    loader = importlib.import_module(BACKENDS[str(backend)])
    if backend in ("onnx", "bank"):
        given = {"reads": reads} if backend == "onnx" else {"how": how, "student": student}
        built: Built = loader.build(name, options, member=member, dataset=dataset, **given)
        return built
    context = {"student": student, "dataset": dataset, "reads": reads} if backend == "timm" else {}
    loaded: Loaded = loader.load(name.partition(":")[2], options, dtype=getattr(torch, dtype), **context)
    return assembled(loaded, name, reads, how, dtype, member=member, dataset=dataset, student=student)


def assembled(
    loaded: Loaded,
    name: str,
    reads: Sequence[str] | None,
    how: str | None,
    dtype: Dtype,
    *,
    member: str,
    dataset: Dataset,
    student: bool,
) -> Built:
    """A loaded body with logits for the classes of the data, the weights that train, and its preparation as an input.

    Raises:
        SettingError: it reads several modalities, or weights of lower precision than float32 would train.
    """
    reads = tuple(reads or (_default_input(loaded.kind, dataset),))
    if len(reads) != 1:
        raise SettingError(f"{name} reads one modality, and reads names {', '.join(reads)}")
    match = None if loaded.classes is None else match_classes(loaded.classes, dataset.classes, loaded.named)
    found = class_texts(loaded, dataset, how, student, name)
    texts = found if isinstance(found, ClassTexts) else None
    how = how or ("frozen" if texts is not None and not student else _default(loaded, match, student))
    fits = match is not None and match.fits and not (student and match.kind == "subset")
    head = len(dataset.classes) if texts is None and not fits and how != "frozen" and dataset.classes else None
    module = Pretrained(
        loaded.body,
        head=head,
        order=match.order if match and fits else None,
        logits=fits or head is not None or texts is not None,
        texts=texts,
    )
    if dtype != "float32" and how != "frozen":
        raise SettingError(
            f"{name}: dtype is {dtype}, and tune is {how!r}: weights that train are float32; set the stage's precision "
            "to compute in a lower one, or tune=frozen"
        )
    switched = tune(module, how, name)
    module.to(getattr(torch, dtype))
    if dtype != "float32" and texts is not None and isinstance(module.head, TextHead):
        # In bfloat16, logits of a hundred times a cosine have steps of 0.1.
        module.head.keep_float32(texts)
    rendering = None if "@" in reads[0] else loaded.rendering
    given = f"{reads[0]}@{'student' if student else member}"
    network = Network(
        module,
        (given,) if rendering else reads,
        module.taps,
        renderings={given: rendering} if rendering else None,
        licence=loaded.licence,
    )
    logits = texts.said if texts is not None else _logits_said(match, fits, head, str(found))
    weights = _weights_said(module, how, dtype, loaded.pretrained)
    return Built(network, ("; ".join([logits, *weights, *switched]), *loaded.notes))


def _default_input(kind: str, dataset: Dataset) -> str:
    """The modality of this kind: that of its name, or a table's `sound` for audio; else the only one of the data."""
    for name in (kind, *(["sound"] if kind == "audio" else [])):
        if name in dataset.inputs:
            return name
    return next(iter(dataset.inputs)) if len(dataset.inputs) == 1 else kind


def _default(loaded: Loaded, match: Match | None, student: bool) -> str:
    if student or not loaded.pretrained:
        return "all"
    return "frozen" if match is not None and match.fits else "head"


def _logits_said(match: Match | None, fits: bool, head: int | None, why: str) -> str:
    said = (why or "it is an encoder") if match is None else match.said
    if fits:
        return said
    return f"{said}; it is used without logits" if head is None else f"{said}; it has a new last layer for {head}"


def _weights_said(module: nn.Module, how: str, dtype: str, pretrained: bool) -> list[str]:
    parameters = list(module.parameters())
    total = sum(one.numel() for one in parameters)
    trained = sum(one.numel() for one in parameters if one.requires_grad)
    many = "all weights train" if trained == total else f"{trained:,} of its {total:,} weights can train (tune={how})"
    drawn = [] if pretrained else ["its first weights are random (options.pretrained=true takes published ones)"]
    return [many if trained else "it is frozen", *drawn, *([dtype] if dtype != "float32" else [])]


def _own_class(
    name: str, options: Mapping[str, Any], reads: Sequence[str] | None, how: str | None, dataset: Dataset
) -> Built:
    made = make_own(name, {"classes": len(dataset.classes), **options})
    if isinstance(made, Network):
        network = made if reads is None else Network(made.module, reads, made.taps)
    else:
        known = tuple(reads or ()) or (tuple(dataset.inputs) if len(dataset.inputs) == 1 else ())
        if not known:
            raise SettingError(
                f"{name}: nothing says what it reads; set `reads` to modalities of the data, of "
                f"{', '.join(dataset.inputs)}"
            )
        network = Network(made, known)
    return Built(network, tuple(tune(network.module, how or "all", name)))


def make_own(name: str, options: Mapping[str, Any]) -> nn.Module:
    """An instance of a class, or the result of a function, `package.module:NAME` with these arguments.

    `classes` is left out where the callable does not take it.

    Raises:
        SettingError: it cannot be imported or called, or makes something else.
    """
    source, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(source)
    except Exception as error:  # the user's code may raise any error
        raise SettingError(
            f"{name}: {source} cannot be imported: {type(error).__name__}: {error}; is its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SettingError(f"{name}: {source} has no {attribute!r}; {nearest(attribute, found)}")
    make: Callable[..., Any] = getattr(module, attribute)
    known = inspect.signature(make).parameters if callable(make) else {}
    every = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    given = {key: value for key, value in options.items() if key != "classes" or every or key in known}
    unknown = [key for key in given if key not in known and not every]
    if unknown:
        raise SettingError(f"{name} takes no argument {unknown[0]!r}; {nearest(unknown[0], known)}")
    try:
        made = make(**given)
    except Exception as error:  # the user's code may raise any error
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SettingError(f"{name} cannot be built with {given}: {said}") from error
    if not isinstance(made, nn.Module):
        raise SettingError(f"{name} makes a {type(made).__name__}; wanted a torch module or a Network")
    return made


def known_names() -> list[str]:
    """The names of the table, and the forms of the others, for help and errors."""
    return [*list_models(), *(f"{one}:NAME" for one in BACKENDS), "package.module:Class"]

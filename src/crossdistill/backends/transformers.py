"""Encoders and classifiers of transformers by hub id or local folder: safetensors only, never code of the folder."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossdistill.backends.classes import has_names
from crossdistill.backends.frontends import frontend_of
from crossdistill.backends.mert import as_hubert, check_rate, check_weights, is_mert
from crossdistill.backends.model_card import licence_of
from crossdistill.backends.pretrained import Kind, Loaded
from crossdistill.backends.processors import (
    own_rendering,
    picture_rendering,
    processor_config,
    read_json,
    sound_rendering,
    text_rendering,
)
from crossdistill.backends.prompts import NAMES, settings_of
from crossdistill.backends.text_head import TextSide
from crossdistill.backends.transformers_body import (
    INPUTS,
    PROJECTION,
    PROJECTIONS,
    TOWERS,
    UNSAVED,
    TransformersBody,
    with_kind,
)
from crossdistill.backends.transformers_text import text_side
from crossdistill.data.rendering import Rendering
from crossdistill.errors import MissingExtraError, SettingError, nearest
from crossdistill.runtime.files import file_fault

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")
"""Files of a hub repository that are downloaded: no code and no pickles."""
CLASSIFIERS = re.compile(r"For(Image|Sequence|Audio|Video)Classification(WithTeacher)?$")
OPTIONS = ("rendering", "seconds", "length", "pretrained", "modality", *NAMES)


def load(source: str, options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> Loaded:
    """A network from a folder, or from the hub's cache or the hub.

    Options: `modality` ("image", "text", "audio") selects a side of a model with two; `rendering` replaces the
    processor of pictures; `length` is the number of tokens, `seconds` that of a sound; `pretrained` False draws new
    weights for the architecture; those of `ZeroShot`.

    Raises:
        SettingError: no such folder or id; no weights, processor or tokenizer; code of its own; an unknown option.
        MissingExtraError: transformers is not installed.
    """
    who = f"transformers:{source}"
    _check_options(options, who)
    folder, zero_shot = find(source), settings_of(options, who)
    config = checked_config(folder, who, weights=options.get("pretrained", True))
    body, notes = _body(folder, config, who, options, dtype)
    settings = processor_config(folder) if body.kind == "audio" else None
    own = read_json(folder / "config.json")
    if is_mert(own):
        check_rate(own, settings, who)
    body.put_behind(frontend_of(settings, body.input, who), settings)
    names = _class_names(config) if body.classifier else None
    return Loaded(
        body=body,
        kind=body.kind,
        rendering=rendering(folder, config, body.kind, who, options),
        classes=names,
        named=names is not None and has_names(names),
        licence=licence_of(folder, folder.name if Path(source).expanduser().is_dir() else source),
        text=_text(folder, who) if _compares(body) else None,
        zero_shot=zero_shot,
        stamp=_stamp(folder),
        pretrained=bool(options.get("pretrained", True)),
        notes=(*_code_note(own), *notes),
    )


def _code_note(config: Mapping[str, Any]) -> list[str]:
    """A line of output where a folder brings code along that is not needed."""
    if is_mert(config):
        code = "; the code that its config.json names is not run" if "auto_map" in config else ""
        return [f"it is MERT without a constant-Q spectrogram and deep normalisation, loaded as HubertModel{code}"]
    if "auto_map" in config:
        return ["its config.json names code of its own, which is not run: transformers has its architecture"]
    return []


def _stamp(folder: Path) -> str:
    found = sorted((one.name, one.stat()) for one in folder.iterdir() if one.is_file())
    return str([str(folder.resolve()), *((name, status.st_size, status.st_mtime_ns) for name, status in found)])


def _compares(body: TransformersBody) -> bool:
    """Whether it is the picture side of a model that compares pictures with texts."""
    return body.kind == "image" and body.projected and hasattr(body.model, "logit_scale")


def _text(folder: Path, who: str) -> Callable[[], TextSide]:
    def read() -> nn.Module:
        transformers = needed()
        with _quiet(transformers):
            return _read(transformers.AutoModel, folder, who, torch.float32)[0]

    return lambda: text_side(folder, who, read)


def _check_options(options: Mapping[str, Any], who: str) -> None:
    unknown = [name for name in options if name not in OPTIONS]
    if "trust_remote_code" in unknown:
        raise SettingError(
            f"{who}: trust_remote_code: code of a model's folder is never run; wanted an architecture of transformers "
            "itself, or your own class (package.module:Class)"
        )
    if unknown:
        raise SettingError(f"{who} has no option {unknown[0]!r}; {nearest(unknown[0], OPTIONS)}")


def find(source: str) -> Path:
    """The local folder of a source: itself, or the snapshot of a hub id.

    Raises:
        SettingError: there is no such folder, and the hub cannot be reached or does not have it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise SettingError(f"transformers:{source}: there is no such folder")
    needed()
    from huggingface_hub import snapshot_download

    offline = bool(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE"))
    try:
        return Path(snapshot_download(source, allow_patterns=list(WANTED), local_files_only=offline))
    except Exception as error:  # the hub's client raises errors of several packages
        how = "offline, and not in the hub's cache" if offline else "neither a folder here nor read from the hub"
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise SettingError(f"transformers:{source}: {how} ({said}); give the path of a folder") from error


def checked_config(folder: Path, who: str, *, weights: bool = True) -> dict[str, Any]:
    """The `config.json` of a folder, after a check that it can be loaded without running code of its own.

    Raises:
        SettingError: the weights are missing or pickled, or the architecture is none of transformers.
        DataError: `config.json` is missing or damaged.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise SettingError(f"{who}: config.json names no model_type, so it is no model of transformers")
    if is_mert(config):
        config = as_hubert(config, who)
    elif kind not in _model_types():
        own = "it needs code of its own, which is never run" if "auto_map" in config else nearest(kind, _model_types())
        raise SettingError(f"{who}: transformers has no model of type {kind!r}: {own[:300]}")
    _refuse_kernels(config, who)
    _refuse_code(config, who)
    if not weights:
        return config
    if file_fault(folder / WEIGHTS) is not None and file_fault(folder / INDEX) is not None:
        pickled = [one.name for one in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))]
        said = f"its weights ({pickled[0]}) are pickled, which are never read" if pickled else "it holds no weights"
        raise SettingError(f"{who}: {said}; wanted {WEIGHTS} in {folder} (model.save_pretrained(FOLDER) writes it)")
    if file_fault(folder / INDEX) is None:
        parts = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        missing = [name for name in parts if file_fault(folder / str(name)) is not None]
        if missing:
            raise SettingError(f"{who}: {len(missing)} of {len(parts)} files of weights are missing: {missing[0]}")
    return config


def modality_of(source: str, options: Mapping[str, Any]) -> Kind:
    """The kind of input, from the configuration alone."""
    who = f"transformers:{source}"
    config = read_json(find(source) / "config.json")
    return _kind(as_hubert(config, who) if is_mert(config) else config, options, who)


def rendering(folder: Path, config: Mapping[str, Any], kind: Kind, who: str, options: Mapping[str, Any]) -> Rendering:
    """The preparation that the folder's processor or tokenizer describes.

    Raises:
        SettingError: it has none, or one that cannot be written as a rendering.
    """
    if kind == "text":
        return text_rendering(folder, {**config, **config.get("text_config", {})}, who, options.get("length"))
    if "rendering" in options and kind == "image":
        return own_rendering(options["rendering"], who)
    settings = processor_config(folder)
    if settings is None:
        raise SettingError(
            f"{who}: there is no preprocessor_config.json in {folder}, which says how its input is prepared; save its "
            "processor there (processor.save_pretrained(FOLDER)), or give options.rendering"
        )
    if kind == "audio":
        return sound_rendering(settings, who, options.get("seconds"))
    return picture_rendering(settings, who, int(config.get("num_channels", 3)))


def rebuilt(description: Mapping[str, Any]) -> TransformersBody:
    """The body of a saved student, with random weights.

    Raises:
        SettingError: the description is invalid, or this version of transformers has no such architecture.
    """
    transformers = needed()
    config, architecture = description.get("config"), str(description.get("architecture"))
    kind: Any = description.get("kind")
    if not isinstance(config, dict) or kind not in PROJECTIONS or config.get("model_type") not in _model_types():
        raise SettingError(f"transformers: {architecture!r} cannot be built from its description")
    _refuse_kernels(config, f"transformers:{architecture}")
    classifier = CLASSIFIERS.search(architecture) is not None
    try:
        with _quiet(transformers):
            made = transformers.AutoConfig.for_model(**{key: one for key, one in config.items() if key not in UNSAVED})
            loader = getattr(transformers, architecture) if classifier else transformers.AutoModel
            model = loader(made) if classifier else loader.from_config(made)
    except Exception as error:  # transformers raises errors of several packages
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SettingError(f"transformers: {architecture!r} cannot be built: {said}") from error
    body = with_kind(model, kind, classifier=classifier, pooled=bool(description.get("pooled")))
    body.taps_projection = bool(description.get("projection"))
    if body.taps_projection and not hasattr(body.model, PROJECTION):
        raise SettingError(f"transformers: {architecture!r} has no {PROJECTION}, which its tap `projection` reads")
    settings = description.get("frontend")
    if isinstance(settings, dict):
        body.put_behind(frontend_of(settings, body.input, architecture), settings)
    return body


def _refuse_kernels(config: Mapping[str, Any], who: str) -> None:
    """Refuse a configuration that names a kernel of the hub, which transformers would download and run."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_kernels(value, who)
        elif "implementation" in key and isinstance(value, str) and "/" in value:
            raise SettingError(f"{who}: its {key} is {value!r}, code of the hub, which is never run")


def _refuse_code(config: Mapping[str, Any], who: str) -> None:
    """Refuse a configuration of a known type whose architecture is in code of its folder."""
    coded = config.get("auto_map")
    names = [str(name) for name in config.get("architectures") or [""]]
    transformers = needed()
    if coded and not any(name and hasattr(transformers, name) for name in names):
        raise SettingError(
            f"{who}: its architecture {names[0]!r} is in code of its own ({str(coded)[:120]}), which is never run; "
            "wanted an architecture of transformers itself, or your own class (package.module:Class)"
        )


def _body(
    folder: Path, config: Mapping[str, Any], who: str, options: Mapping[str, Any], dtype: torch.dtype
) -> tuple[TransformersBody, tuple[str, ...]]:
    """The body, and lines of output on it."""
    kind = _kind(config, options, who)
    architecture = str(next(iter(config.get("architectures") or [""])))
    classifier = CLASSIFIERS.search(architecture) is not None
    transformers = needed()
    loader = getattr(transformers, architecture, None) if classifier else transformers.AutoModel
    if loader is None:
        raise SettingError(f"{who}: this version of transformers has no {architecture}")
    missing: set[str] = set()
    notes: tuple[str, ...] = ()
    with _quiet(transformers):
        if is_mert(read_json(folder / "config.json")) and options.get("pretrained", True):
            made = transformers.AutoConfig.for_model(**config)
            model, missing, unexpected = _read(transformers.HubertModel, folder, who, dtype, config=made)
            notes = check_weights(unexpected, who)
        elif options.get("pretrained", True):
            model, missing, _ = _read(loader, folder, who, dtype)
        else:
            made = transformers.AutoConfig.for_model(**config)
            model = loader(made) if classifier else loader.from_config(made)
            model = model.to(dtype)
    # The place of the folder is part of no key.
    holders: tuple[Any, ...] = (model, model.config)
    for holder in holders:
        holder.name_or_path = ""
    unread = [name for name in missing if "pooler" not in name]
    if unread:
        raise SettingError(
            f"{who}: its weights lack {len(unread)} of {architecture or config['model_type']}, such as "
            f"{sorted(unread)[0]!r}; they are of another architecture than config.json says"
        )
    pooled = not any("pooler" in name for name in missing)
    return with_kind(model, kind, classifier=classifier, pooled=pooled), notes


def _read(
    loader: Any, folder: Path, who: str, dtype: torch.dtype, **given: Any
) -> tuple[nn.Module, set[str], set[str]]:
    """A model, the names of its weights that the folder lacks, and those of further weights in the folder."""
    try:
        model, info = loader.from_pretrained(
            str(folder),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            # Reported below; transformers itself only prints them.
            ignore_mismatched_sizes=True,
            dtype=dtype,
            **given,
        )
    except Exception as error:  # transformers raises errors of several packages
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SettingError(f"{who}: it cannot be loaded from {folder}: {said}") from error
    wrong = sorted(str(one) for one in info.get("mismatched_keys", ()))
    if wrong:
        raise SettingError(f"{who}: weights in {folder} have other shapes than config.json says: {wrong[0][:200]}")
    return model, set(info["missing_keys"]), set(info["unexpected_keys"])


def _kind(config: Mapping[str, Any], options: Mapping[str, Any], who: str) -> Kind:
    """The kind of input of an architecture, by the name of its model's first argument."""
    sides = [side for side, names in TOWERS.items() if any(f"{name}_config" in config for name in names)]
    wanted = options.get("modality")
    if len(sides) > 1:
        if wanted in sides:
            return next(side for side in sides if side == wanted)
        if wanted is None:
            return "image" if "image" in sides else sides[0]
        raise SettingError(f"{who}: options.modality: wanted {' or '.join(sides)}, found {wanted!r}")
    transformers = needed()
    with _quiet(transformers):
        made = transformers.AutoConfig.for_model(**config)
    architecture = str(next(iter(config.get("architectures") or [""])))
    kind = getattr(transformers, architecture, None)
    if kind is None:
        try:
            kind = transformers.AutoModel._model_mapping[type(made)]
        except KeyError:
            kind = None
    name = str(getattr(kind, "main_input_name", ""))
    if name not in INPUTS:
        raise SettingError(f"{who}: {config['model_type']} is neither an image, a text nor an audio encoder")
    return INPUTS[name]


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label") or {}
    number = len(names) or int(config.get("num_labels", 2))
    return tuple(str(names.get(str(one), f"LABEL_{one}")) for one in range(number))


def _model_types() -> list[str]:
    needed()
    from transformers import CONFIG_MAPPING

    return list(CONFIG_MAPPING.keys())


def needed() -> Any:
    """The package, or an error that says how it is installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("a network `transformers:...`", "transformers", "transformers") from error
    return transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' own bars and reports; faults are raised as errors here."""
    logger = transformers.utils.logging
    level, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity(logging.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if bars:
            logger.enable_progress_bar()

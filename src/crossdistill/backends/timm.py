"""Image networks of timm by name, with the preparation that their weights were trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.model_card import commercial
from crossdistill.backends.pretrained import Body, Kind, Loaded, read_before
from crossdistill.backends.processors import own_rendering
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.rendering import PictureRendering
from crossdistill.errors import MissingExtraError, SettingError, nearest


def load(
    source: str,
    options: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    student: bool = False,
    dataset: Dataset | None = None,
    reads: Sequence[str] | None = None,
) -> Loaded:
    """A network by its name in timm.

    Options: `pretrained` takes published weights (the default of a teacher; a student starts from random ones),
    `rendering` replaces the preparation of pictures, and all others go to `timm.create_model`. Without published
    weights a network reads the data as they are, at their own size and number of channels, if its size is not fixed.

    Raises:
        SettingError: no such network or option, or its weights cannot be had.
        MissingExtraError: timm is not installed, or cannot be imported beside this torch.
    """
    timm = needed("timm", "timm")
    who, name = f"timm:{source}", source.partition(".")[0]
    if ":" not in source and not timm.is_model(name):
        raise SettingError(f"timm has no network {source!r}; {_near(source, timm.list_models())}")
    pretrained = bool(options.get("pretrained", not student))
    given = {key: value for key, value in options.items() if key not in ("pretrained", "rendering")}
    channels = None if pretrained else _channels(dataset, reads)
    if channels is not None:
        given.setdefault("in_chans", channels)
    try:
        model = timm.create_model(source, pretrained=pretrained, **given)
    except Exception as error:  # timm and the hub's client raise errors of several packages
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        cure = "; options.pretrained=false takes random weights, options.checkpoint_path a file" if pretrained else ""
        raise SettingError(f"{who} cannot be built with {given}: {said}{cure}") from error
    config = dict(model.pretrained_cfg)
    as_they_are = channels is not None and not config.get("fixed_input_size")
    own = own_rendering(options["rendering"], who) if "rendering" in options else _rendering(config, given)
    return Loaded(
        body=TimmBody(model.to(dtype), str(config.get("architecture") or name), given),
        kind="image",
        rendering=None if as_they_are and "rendering" not in options else own,
        classes=_classes(timm, config, model) if pretrained else None,
        named=True,
        licence=_licence(source, config) if pretrained else None,
        pretrained=pretrained,
    )


def modality_of(source: str, options: Mapping[str, Any]) -> Kind:
    """The kind of input: pictures."""
    return "image"


def rebuilt(description: Mapping[str, Any]) -> "TimmBody":
    """The body of a saved student, with random weights.

    Raises:
        SettingError: the description is invalid, or timm has no such network.
    """
    timm = needed("timm", "timm")
    name, given = description.get("name"), description.get("arguments")
    if not isinstance(name, str) or not isinstance(given, dict) or not timm.is_model(name.partition(".")[0]):
        raise SettingError(f"timm has no network {name!r}")
    if ":" in name or {"checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"} & set(given):
        raise SettingError(f"timm: the arguments of {name!r} name files or weights: {', '.join(map(str, given))}")
    try:
        return TimmBody(timm.create_model(name, pretrained=False, **given), name, given)
    except Exception as error:  # timm raises errors of several kinds
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SettingError(f"timm cannot build {name!r}: {said}") from error


class TimmBody(Body):
    """A network of timm: its feature modules are the layers."""

    def __init__(self, model: nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._name = name
        self._arguments = {
            key: value for key, value in arguments.items() if key not in ("checkpoint_path", "cache_dir")
        }
        described: Any = model
        self.width = int(getattr(described, "head_hidden_size", None) or described.num_features)

    def description(self) -> dict[str, Any]:
        """See `Body`: the name of the architecture, and the arguments of `timm.create_model`."""
        last = self.last()
        layer = None if last is None else last[0].get_submodule(last[1])
        classes = {"num_classes": layer.out_features} if isinstance(layer, nn.Linear) else {}
        return {"name": self._name, "arguments": {**self._arguments, **classes}}

    def layers(self) -> list[nn.Module]:
        """See `Body`: the modules that timm names for features."""
        info: Any = getattr(self.model, "feature_info", None) or []
        entries = info if isinstance(info, list) else info.info
        names = [str(one["module"]) for one in entries if one.get("module")]
        known = dict(self.model.named_modules())
        return [known[name] for name in names if name in known]

    def last(self) -> tuple[nn.Module, str] | None:
        """See `Body`."""
        model: Any = self.model
        layer = model.get_classifier()
        if not isinstance(layer, nn.Linear):
            return None
        return self.model, next(name for name, one in self.model.named_modules() if one is layer)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        """The embedding, which is the input of the classifier, and logits."""
        place = self.last()
        if place is None:
            return {"embedding": self.model(values).flatten(1)}
        logits, embedding = read_before(place[0].get_submodule(place[1]), lambda: self.model(values))
        return {"logits": logits, "embedding": embedding}


def needed(package: str, extra: str) -> Any:
    """An optional package that needs torchvision.

    Raises:
        MissingExtraError: it is not installed.
        SettingError: it cannot be imported beside this torch; gives the reason.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise MissingExtraError(f"a network of {package}", package, extra) from error
        raise SettingError(f"{package} cannot be imported: {error}; crossdistill doctor says more") from error
    except Exception as error:  # a torchvision that does not match torch raises RuntimeError
        said = " ".join(str(error).split())[:200]
        raise SettingError(
            f"{package} cannot be imported beside torch {torch.__version__}: {said}; it needs the torchvision that was "
            f'built for it: pip install "crossdistill[{extra}]" torchvision in a new environment'
        ) from error


def _channels(dataset: Dataset | None, reads: Sequence[str] | None) -> int | None:
    """The number of channels of the data's pictures; None where they are none."""
    name = (reads or ("image",))[0]
    spec = None if dataset is None else dataset.input_specs.get(name)
    return int(spec.shape[0]) if spec is not None and len(spec.shape) == 3 else None


def _rendering(config: Mapping[str, Any], given: Mapping[str, Any]) -> PictureRendering:
    channels, height, width = (int(one) for one in config["input_size"])
    size = given.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    fraction = float(config.get("crop_pct") or 1.0)
    whole = config.get("crop_mode") == "squash" or height != width
    mode = str(config.get("interpolation", "bilinear"))
    return PictureRendering(
        size=(height, width),
        shortest=None if whole else int(height / fraction),
        interpolation="bicubic" if mode == "bicubic" else "bilinear",
        rounded=True,
        mean=tuple(config.get("mean", ())),
        deviation=tuple(config.get("std", ())),
        channels=1 if channels == 1 else 3,
    )


def _classes(timm: Any, config: Mapping[str, Any], model: Any) -> tuple[str, ...] | None:
    names = config.get("label_names")
    if names:
        return tuple(map(str, names))
    number = int(model.num_classes)
    if number == 1000 or number in (21841, 11821, 12000):
        try:
            info = timm.data.ImageNetInfo(timm.data.infer_imagenet_subset(model) or "imagenet-1k")
            return tuple(str(info.index_to_description(one)) for one in range(number))
        except (KeyError, AssertionError, ValueError, OSError):
            pass
    return tuple(f"LABEL_{one}" for one in range(number)) or None


def _licence(source: str, config: Mapping[str, Any]) -> Licence | None:
    stated = str(config.get("license") or "")
    origin = str(config.get("origin_url") or config.get("url") or "timm")
    return Licence(f"timm:{source}", stated, origin, commercial(stated)) if stated else None


def _near(source: str, names: Sequence[str]) -> str:
    hint = nearest(source, names).partition("known:")[0]
    return hint or f"timm.list_models() lists its {len(names):,}"

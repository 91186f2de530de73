"""Data sets, their preparation and storage; lookup by name in a table here, then in entry points of other packages."""

import importlib
from typing import TYPE_CHECKING

from crossdistill.errors import SettingError, nearest

if TYPE_CHECKING:
    from crossdistill.data.config import DataConfig

# Import paths, not classes: listing the names does not import torch.
DATA = {
    "av-digits": "crossdistill.data.sets.av_digits:AvDigitsConfig",
    "av-mnist": "crossdistill.data.sets.av_mnist:AvMnistConfig",
    "cifar10": "crossdistill.data.sets.cifar:Cifar10Config",
    "cifar100": "crossdistill.data.sets.cifar:Cifar100Config",
    "folder": "crossdistill.data.folder:FolderConfig",
    "imagenet": "crossdistill.data.sets.imagenet:ImagenetConfig",
    "speech-music": "crossdistill.data.sets.speech_music:SpeechMusicConfig",
    "tiny-imagenet": "crossdistill.data.sets.tiny_imagenet:TinyImagenetConfig",
    "table": "crossdistill.data.table:TableConfig",
}

ENTRY_POINTS = "crossdistill.data"


def find_data(name: str) -> "type[DataConfig]":
    """The settings class of a data set: from the table, else from the entry points `crossdistill.data`.

    Raises:
        SettingError: no data set has this name (names the nearest), or its package cannot be imported.
    """
    if name in DATA:
        module, _, attribute = DATA[name].partition(":")
        config_class: type[DataConfig] = getattr(importlib.import_module(module), attribute)
        return config_class
    # Imported here because it is slow.
    from importlib.metadata import entry_points

    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        raise SettingError(f"data {name!r} is unknown; {nearest(name, [*DATA, *offered])}")
    from crossdistill.data import config

    try:
        foreign = offered[name].load()
    except Exception as error:  # the other package's code may raise anything
        why = f"{type(error).__name__}: {error}"
        raise SettingError(f"data {name!r}: {offered[name].value} cannot be imported: {why}") from error
    if not (isinstance(foreign, type) and issubclass(foreign, config.DataConfig)):
        raise SettingError(f"the entry point {name!r} of {offered[name].value!r} is no DataConfig")
    checked: type[DataConfig] = foreign
    return checked


def names() -> list[str]:
    """Names of all data sets: of the table, then of other packages."""
    from importlib.metadata import entry_points

    return list(dict.fromkeys([*DATA, *(point.name for point in entry_points(group=ENTRY_POINTS))]))

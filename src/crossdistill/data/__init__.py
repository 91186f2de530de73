"""Data sets: one file each, an explicit table here, entry points of other packages behind it."""

import importlib
from typing import TYPE_CHECKING

from crossdistill.errors import SettingError, nearest

if TYPE_CHECKING:
    from crossdistill.data.config import DataConfig

# Classes are named, not imported: listing the names must not cost the import of torch.
DATA = {
    "av-digits": "crossdistill.data.av_digits:AvDigitsConfig",
    "av-mnist": "crossdistill.data.av_mnist:AvMnistConfig",
}

ENTRY_POINTS = "crossdistill.data"


def find_data(name: str) -> "type[DataConfig]":
    """The settings class of a data set: from the table, else from the entry points `crossdistill.data`.

    Raises:
        SettingError: nobody offers that name; says the nearest.
    """
    if name in DATA:
        module, _, attribute = DATA[name].partition(":")
        found: type[DataConfig] = getattr(importlib.import_module(module), attribute)
        return found
    # Slow to import, and needed only here.
    from importlib.metadata import entry_points

    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        raise SettingError(f"data {name!r} is unknown; {nearest(name, [*DATA, *offered])}")
    foreign: type[DataConfig] = offered[name].load()
    return foreign

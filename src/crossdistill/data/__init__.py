"""Data sets: one file each, an explicit table here, entry points of other packages behind it."""

import importlib
from typing import TYPE_CHECKING

from crossdistill.errors import SettingError, nearest

if TYPE_CHECKING:
    from crossdistill.data.config import DataConfig

# Classes are named, not imported: listing the names must not cost the import of torch.
DATA = {
    "av-digits": "crossdistill.data.sets.av_digits:AvDigitsConfig",
    "av-mnist": "crossdistill.data.sets.av_mnist:AvMnistConfig",
}

ENTRY_POINTS = "crossdistill.data"


def find_data(name: str) -> "type[DataConfig]":
    """The settings class of a data set: from the table, else from the entry points `crossdistill.data`.

    Raises:
        SettingError: no such data (says the nearest), or the package that offers them is broken.
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
    from crossdistill.data import config

    try:
        foreign = offered[name].load()
    except Exception as error:  # another package's program may fail in any way
        why = f"{type(error).__name__}: {error}"
        raise SettingError(f"data {name!r}: {offered[name].value} cannot be imported: {why}") from error
    if not (isinstance(foreign, type) and issubclass(foreign, config.DataConfig)):
        raise SettingError(f"the entry point {name!r} of {offered[name].value!r} is no DataConfig")
    own: type[DataConfig] = foreign
    return own


def names() -> list[str]:
    """All data, of the table and of other packages."""
    from importlib.metadata import entry_points

    return list(dict.fromkeys([*DATA, *(point.name for point in entry_points(group=ENTRY_POINTS))]))

"""Grids of runs under equal conditions, and the tables of their results.

`crossdistill.compare(setup, methods=[...], seeds=5)` compares methods on a program's own data and networks, an
`ExperimentSetup`. `compare.compare(compare.Grid(...), out)` is `crossdistill compare` on the command line.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdistill.compare.grid import Grid
    from crossdistill.compare.run import Comparison, compare, compare_setup
    from crossdistill.recipes.setup import ExperimentSetup

__all__ = ["Comparison", "ExperimentSetup", "Grid", "compare", "compare_setup"]

_HOMES = {
    "Comparison": "compare.run",
    "ExperimentSetup": "recipes.setup",
    "Grid": "compare.grid",
    "compare": "compare.run",
    "compare_setup": "compare.run",
}


def __getattr__(name: str) -> Any:
    # Imported at first use, since executors and tables are modules of this package and need none of these names.
    if name not in _HOMES:
        raise AttributeError(f"module 'crossdistill.compare' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crossdistill.{_HOMES[name]}"), name)


class _Callable(ModuleType):
    """This package, which can be called: the folder and the function of the field's word have one name."""

    def __call__(self, setup: "ExperimentSetup", *arguments: Any, **named: Any) -> "Comparison":
        """`compare_setup`."""
        from crossdistill.compare.run import compare_setup

        return compare_setup(setup, *arguments, **named)


sys.modules[__name__].__class__ = _Callable

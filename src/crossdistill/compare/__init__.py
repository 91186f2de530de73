"""Grids of runs under equal conditions, and the tables of their results.

`compare.compare(compare.Grid(...), out)` in a program is `crossdistill compare` on the command line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdistill.compare.grid import Grid
    from crossdistill.compare.run import compare

__all__ = ["Grid", "compare"]


def __getattr__(name: str) -> Any:
    # Imported at first use, since executors and tables are modules of this package and need neither name.
    if name == "Grid":
        from crossdistill.compare.grid import Grid

        return Grid
    if name == "compare":
        from crossdistill.compare.run import compare

        return compare
    raise AttributeError(f"module 'crossdistill.compare' has no attribute {name!r}")

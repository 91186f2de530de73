"""The child process of the package check: one import, and what can be said about its failure; run as a file.

Arguments: module, attribute (or empty), the search path as JSON. Exit status 0: it imports. Otherwise one line
`said:JSON` with the error and the packages that the import went through, then a line `library:...` for each of their
shared libraries that does not load: the error on top often hides that.
"""

import contextlib
import ctypes
import importlib
import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

MOST_LIBRARIES = 200


def attempt(module: str, attribute: str) -> None:
    """Import; fetch the attribute too, since some packages load late; a `get_library_path` is loaded as well."""
    found: Any = importlib.import_module(module)
    if attribute:
        found = getattr(found, attribute)
    if attribute == "get_library_path":
        ctypes.CDLL(found())


def packages_on_the_way(trace: TracebackType | None) -> list[str]:
    """Top-level packages whose code was running when it failed, outermost first."""
    names = [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in traceback.walk_tb(trace)]
    return [name for name in dict.fromkeys(names) if name not in {"__main__", "importlib", "", "ctypes"}]


def unloadable(packages: Iterable[str]) -> list[str]:
    """What the loader says about each shared library of these packages that does not load."""
    folders = [Path(entry) / name for name in packages for entry in sys.path]
    libraries = sorted(path for folder in folders if folder.is_dir() for path in folder.rglob("*.so*"))[:MOST_LIBRARIES]
    if libraries:
        # Its libraries are then in the process, as they are when the package itself is imported.
        with contextlib.suppress(Exception):
            importlib.import_module("torch")
    said = []
    for library in libraries:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            said.append(" ".join(str(error).split()))
    return said


def main() -> int:
    """Try, and report to stdout."""
    module, attribute, path = sys.argv[1:4]
    sys.path[:] = json.loads(path)
    try:
        attempt(module, attribute)
    except BaseException as error:
        through = packages_on_the_way(error.__traceback__)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        said = {"error": type(error).__name__, "text": str(error), "through": through, "missing": missing}
        sys.stdout.write(f"said:{json.dumps(said)}\n")
        sys.stdout.flush()
        own = module.split(".")[0]
        for line in unloadable(dict.fromkeys([own, *through])):
            sys.stdout.write(f"library:{line}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

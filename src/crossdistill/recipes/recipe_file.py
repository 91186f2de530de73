"""A user's Python file as a module that can import files in its folder, as with `python FILE.py`."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from crossdistill.errors import SettingError
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.hashing import key_hash


@dataclass
class _Folder:
    """A folder of recipe files: modules that were loaded before its first file, and modules from the folder."""

    before: frozenset[str]
    modules: dict[str, ModuleType] = field(default_factory=dict)


_FOLDERS: dict[Path, _Folder] = {}
_NAMES: dict[str, Path] = {}


def load_file(path: Path) -> ModuleType:
    """The file as a module, executed at each call; its folder comes first in the search path of imports.

    Raises:
        SettingError: the path does not exist, or is not a file.
    """
    fault = file_fault(path)
    if fault is not None:
        raise SettingError(f"recipe file {path}: {fault}")
    full = path.resolve()
    look_beside(full.parent)
    # The file's own name, unless another module has or had that name: classes refer to their module by name.
    taken = path.stem in sys.modules or _NAMES.get(path.stem, full) != full
    name = f"{path.stem}_{key_hash(str(full))[:8]}" if taken else path.stem
    _NAMES[name] = full
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def look_beside(folder: Path) -> None:
    """Import from `folder` first, until another recipe's folder replaces it.

    A module from an earlier folder is removed from `sys.modules` where this folder has one of the same name, and it
    returns with its own folder, so that two recipes can each have a `models.py`.
    """
    for other, known in _FOLDERS.items():
        if other == folder:
            continue
        known.modules |= {name: sys.modules[name] for name in sorted(sys.modules) if _is_of(other, known, name)}
        sys.path[:] = [entry for entry in sys.path if entry != str(other)]
        for name, module in known.modules.items():
            if sys.modules.get(name) is module and _has(folder, name):
                del sys.modules[name]
    known = _FOLDERS.setdefault(folder, _Folder(frozenset(sys.modules)))
    sys.modules.update(known.modules)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _has(folder: Path, name: str) -> bool:
    top = name.partition(".")[0]
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()


def _is_of(folder: Path, known: _Folder, name: str) -> bool:
    """Whether a module lies directly in this folder, not in an environment below it."""
    top = name.partition(".")[0]
    if name in known.before or top in known.before:
        return False
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    places = [file] if file else [*getattr(module, "__path__", ())]
    return any(folder in {Path(place).parent, Path(place).parent.parent} for place in places)

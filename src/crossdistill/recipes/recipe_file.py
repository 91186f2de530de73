"""A Python file of the user's as a module that can import its neighbours, as `python FILE.py` can."""

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
    """A folder of recipe files: modules that were there before the first of them, and those out of it."""

    before: frozenset[str]
    modules: dict[str, ModuleType] = field(default_factory=dict)


_FOLDERS: dict[Path, _Folder] = {}
_NAMES: dict[str, Path] = {}


def load_file(path: Path) -> ModuleType:
    """The file as a module, run anew at each call; its folder comes first where Python looks for others.

    Raises:
        SettingError: it does not exist, or is no file.
    """
    fault = file_fault(path)
    if fault is not None:
        raise SettingError(f"recipe file {path}: {fault}")
    full = path.resolve()
    look_beside(full.parent)
    # Its own name, unless another module has it already, or had it: classes find their module by it.
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
    """Import out of `folder` first, from now on and until another recipe's folder takes its place.

    A module out of an earlier folder steps aside where this one has a module of that name, and comes back with its own
    folder: two recipes with a `models.py` each have their own.
    """
    for other, known in _FOLDERS.items():
        if other == folder:
            continue
        known.modules |= {name: sys.modules[name] for name in sorted(sys.modules) if _is_of(other, known, name)}
        sys.path[:] = [entry for entry in sys.path if entry != str(other)]
        for name, module in known.modules.items():
            if sys.modules.get(name) is module and _has(folder, name):
                del sys.modules[name]
    own = _FOLDERS.setdefault(folder, _Folder(frozenset(sys.modules)))
    sys.modules.update(own.modules)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _has(folder: Path, name: str) -> bool:
    top = name.partition(".")[0]
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()


def _is_of(folder: Path, known: _Folder, name: str) -> bool:
    """Whether a module was found in this very folder, not in an environment that lies below it."""
    top = name.partition(".")[0]
    if name in known.before or top in known.before:
        return False
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    places = [file] if file else [*getattr(module, "__path__", ())]
    return any(folder in {Path(place).parent, Path(place).parent.parent} for place in places)

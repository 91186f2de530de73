"""What is installed, what is broken and why, where caches and data are: the facts behind `crossdistill doctor`."""

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from crossdistill import __version__
from crossdistill.cli.package_check import PACKAGES, Finding, Package, attempt
from crossdistill.data.cache import CACHE_VARIABLE, cache_folder, entries
from crossdistill.data.config import ROOT_VARIABLE

LICENCES = (
    "espeakng-loader bundles eSpeak NG (GPL-3.0-or-later). It is called in a child process that hands sounds back; "
    "no code of it is linked or imported here. --set data.speech=FOLDER uses recordings instead.",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where this runs; memory in bytes, 0 where the system does not tell."""

    python: str
    system: str
    torch: str
    threads: int
    cores: int
    memory_bytes: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that matters: sizes in bytes; `reason` says why it cannot be used."""

    path: str
    found: bool
    writable: bool
    size_bytes: int = 0
    free_bytes: int = 0
    holds: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `crossdistill doctor` says; `data` is None while no data folder is named."""

    crossdistill: str
    machine: Machine
    packages: tuple[Finding, ...]
    cache: Folder
    data: Folder | None
    licences: tuple[str, ...] = LICENCES

    @property
    def faults(self) -> tuple[str, ...]:
        """What stands in the way: broken packages, absent core ones, a cache that cannot be written."""
        wrong = [one for one in self.packages if one.state == "broken" or (one.state, one.extra) == ("missing", "core")]
        found = [f"{one.module} is {one.state}: {one.reason}; {one.remedy}" for one in wrong]
        if not self.cache.writable:
            found.append(f"cache {self.cache.path}: {self.cache.reason}; set {CACHE_VARIABLE} to another folder")
        if self.data is not None and not self.data.found:
            found.append(f"data folder {self.data.path}: {self.data.reason}; {ROOT_VARIABLE} names it")
        return tuple(found)


def examine(packages: Sequence[Package] = PACKAGES, *, timeout_s: float = 120.0) -> Diagnosis:
    """Try every package, look at the machine and its folders; an import longer than `timeout_s` counts as broken."""
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        findings = tuple(pool.map(lambda package: attempt(package, timeout_s), packages))
    root = os.environ.get(ROOT_VARIABLE)
    return Diagnosis(
        crossdistill=__version__,
        machine=_machine(),
        packages=findings,
        cache=_cache(),
        data=_data(Path(root).expanduser()) if root else None,
    )


def as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """The same as plain JSON, with the faults."""
    return asdict(diagnosis) | {"faults": list(diagnosis.faults)}


def _cores() -> int:
    """Cores that this process may use, which a container can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    """Memory of this machine, or what a container grants."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _machine() -> Machine:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    try:
        # Late: help and version of the command line do without torch.
        import torch
    except (ImportError, OSError) as error:
        return Machine(python, system, f"broken: {error}", 0, _cores(), _memory_bytes(), ())
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return Machine(
        python, system, str(torch.__version__), torch.get_num_threads(), _cores(), _memory_bytes(), tuple(devices)
    )


def _writable(folder: Path) -> str:
    """Why nothing can be written there, or in the nearest folder above that exists; empty when it can."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror or error})"


def _free_bytes(folder: Path) -> int:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _cache() -> Folder:
    path = cache_folder()
    reason = _writable(path)
    held = entries()
    return Folder(
        path=str(path),
        found=path.is_dir(),
        writable=not reason,
        size_bytes=sum(entry.size_bytes for entry in held),
        free_bytes=_free_bytes(path),
        holds=tuple(entry.path.name for entry in held),
        reason=reason,
    )


def _data(path: Path) -> Folder:
    if not path.is_dir():
        return Folder(str(path), found=False, writable=False, reason="no such folder")
    try:
        holds = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
    except OSError as error:
        return Folder(str(path), found=False, writable=False, reason=f"cannot be read ({error.strerror or error})")
    return Folder(str(path), found=True, writable=not _writable(path), free_bytes=_free_bytes(path), holds=holds)


def render(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis for a terminal."""
    table = Table("package", "state", "version", "extra", "for", box=None, padding=(0, 2, 0, 0))
    for one in diagnosis.packages:
        unneeded = one.state == "missing" and not one.extra
        colour = "dim" if unneeded else {"ok": "green", "missing": "yellow", "broken": "red"}[one.state]
        table.add_row(one.module, f"[{colour}]{one.state}", *map(escape, (one.version, one.extra, one.purpose)))
    advice = [
        escape(f"{one.module}: {one.remedy}") for one in diagnosis.packages if one.state == "missing" and one.remedy
    ]
    verdict = [f"[red]{escape(fault)}" for fault in diagnosis.faults] or ["[green]nothing stands in the way"]
    licences = map(escape, diagnosis.licences)
    return Group(_facts(diagnosis), "", table, "", *advice, "", *licences, "", *verdict)


def _facts(diagnosis: Diagnosis) -> Table:
    machine, cache, data = diagnosis.machine, diagnosis.cache, diagnosis.data
    held = f"{_size(cache.size_bytes)} in {len(cache.holds)} entries, {_size(cache.free_bytes)} free"
    if data is None:
        real = f"no folder named ({ROOT_VARIABLE} names one)"
    else:
        real = f"{data.path}: {(', '.join(data.holds) or 'empty') if data.found else data.reason}"
    table = Table.grid(padding=(0, 2))
    for name, text in (
        ("crossdistill", diagnosis.crossdistill),
        ("python", f"{machine.python}, {machine.system}"),
        ("torch", f"{machine.torch}, {machine.threads} threads on {machine.cores} cores"),
        ("memory", _size(machine.memory_bytes) if machine.memory_bytes else "unknown"),
        ("devices", ", ".join(machine.devices) or "none"),
        ("cache", f"{cache.path}: {held if cache.writable else cache.reason}"),
        ("data", real),
    ):
        table.add_row(f"[bold]{name}", escape(text))
    return table


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"

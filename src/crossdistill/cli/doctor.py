"""Facts that `crossdistill doctor` prints: installed and broken packages, the machine, folders of cache and data."""

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from crossdistill import __version__
from crossdistill.bank.bank import size_text
from crossdistill.cli.package_check import PACKAGES, Finding, Package, attempt
from crossdistill.data.cache import CACHE_VARIABLE, cache_folder, entries
from crossdistill.data.config import ROOT_VARIABLE

LICENCES = (
    "espeakng-loader bundles eSpeak NG (GPL-3.0-or-later). It is called in a child process that hands sounds back; "
    "no code of it is linked or imported here. --set data.speech=FOLDER uses recordings instead.",
)
ARCHIVES = (".tar", ".tar.gz", ".tgz")
"""Endings of files in the data folder that are listed beside its folders."""
COLOURS = {"ok": "green", "missing": "yellow", "broken": "red"}


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of the cache or of the data: sizes in bytes; `reason` is the cause where it cannot be used."""

    path: str
    found: bool
    writable: bool
    size_bytes: int = 0
    free_bytes: int = 0
    holds: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `crossdistill doctor` prints; `data` is None where no data folder is set."""

    crossdistill: str
    machine: dict[str, Any]
    packages: tuple[Finding, ...]
    cache: Folder
    data: Folder | None
    licences: tuple[str, ...] = LICENCES

    @property
    def faults(self) -> tuple[str, ...]:
        """Broken packages, missing core packages, a cache that cannot be written, a missing data folder."""
        faults = [
            f"{package.module} is {package.state}: {package.reason}; {package.remedy}"
            for package in self.packages
            if package.state == "broken" or (package.state, package.extra) == ("missing", "core")
        ]
        if not self.cache.writable:
            faults.append(f"cache {self.cache.path}: {self.cache.reason}; set {CACHE_VARIABLE} to another folder")
        if self.data is not None and not self.data.found:
            faults.append(f"data folder {self.data.path}: {self.data.reason}; set {ROOT_VARIABLE} to another folder")
        return tuple(faults)


def examine(packages: Sequence[Package] = PACKAGES, *, timeout_s: float = 120.0) -> Diagnosis:
    """Check every package, the machine and the folders; an import longer than `timeout_s` seconds counts as broken."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        findings = tuple(pool.map(lambda package: attempt(package, timeout_s), packages))
    held = entries()
    cache = _folder(cache_folder(), [entry.path.name for entry in held], sum(entry.size_bytes for entry in held))
    root = os.environ.get(ROOT_VARIABLE)
    return Diagnosis(__version__, _machine(), findings, cache, _data(Path(root).expanduser()) if root else None)


def as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain JSON, with the faults."""
    return asdict(diagnosis) | {"faults": list(diagnosis.faults)}


def _machine() -> dict[str, Any]:
    """The machine; cores and memory are the limits of the container, memory is 0 bytes where it is unknown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    cuda = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": min(memory, int(text)) if text.isdigit() else memory,
        "devices": ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])],
    }


def _data(path: Path) -> Folder:
    try:
        held = (entry.name for entry in path.iterdir() if entry.is_dir() or entry.name.endswith(ARCHIVES))
        return _folder(path, sorted(held))
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})" if path.is_dir() else "no such folder"
        return Folder(str(path), found=False, writable=False, reason=reason)


def _folder(path: Path, holds: Sequence[str], size_bytes: int = 0) -> Folder:
    """The state of a folder; a missing one would be created, so its nearest existing parent is checked."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    reason = ""
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
    return Folder(str(path), path.is_dir(), not reason, size_bytes, shutil.disk_usage(place).free, tuple(holds), reason)


def render(diagnosis: Diagnosis) -> RenderableType:
    """The diagnosis for a terminal."""
    machine, cache, data = diagnosis.machine, diagnosis.cache, diagnosis.data
    facts = Table.grid(padding=(0, 2))
    packages = Table("package", "state", "version", "extra", "for", box=None, padding=(0, 2, 0, 0))
    cached = f"{size_text(cache.size_bytes)} in {len(cache.holds)} entries, {size_text(cache.free_bytes)} free"
    real = f"not set (by {ROOT_VARIABLE})"
    if data is not None:
        real = f"{data.path}: {', '.join(data.holds) or 'empty' if data.found else data.reason}"
    for name, text in (
        ("crossdistill", diagnosis.crossdistill),
        ("python", f"{machine['python']}, {machine['system']}"),
        ("torch", f"{machine['torch']}, {machine['threads']} threads on {machine['cores']} cores"),
        ("memory", size_text(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown"),
        ("devices", ", ".join(machine["devices"])),
        ("cache", f"{cache.path}: {cache.reason or cached}"),
        ("data", real),
    ):
        facts.add_row(f"[bold]{name}", escape(text))
    advice: list[str] = []
    for row in diagnosis.packages:
        colour = "dim" if row.state == "missing" and not row.extra else COLOURS[row.state]
        packages.add_row(row.module, f"[{colour}]{row.state}", *map(escape, (row.version, row.extra, row.purpose)))
        if row.state == "missing" and row.remedy:
            advice.append(escape(f"{row.module}: {row.remedy}"))
    faults = [f"[red]{escape(fault)}" for fault in diagnosis.faults] or ["[green]no faults"]
    return Group(facts, "", packages, "", *advice, "", *map(escape, diagnosis.licences), "", *faults)

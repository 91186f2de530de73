"""Selects the executor of a grid: local processes, a Ray cluster, or a Slurm cluster."""

from collections.abc import Mapping
from os import cpu_count
from pathlib import Path
from typing import Any

from crossdistill.compare.executors.cluster import Remote
from crossdistill.compare.executors.local import Executor, Pool, Work
from crossdistill.compare.executors.messages import FOLDER
from crossdistill.compare.executors.on_ray import RayCluster
from crossdistill.compare.executors.on_slurm import SlurmCluster
from crossdistill.errors import SettingError, nearest
from crossdistill.overrides import parse_override

EXECUTORS = ("local", "ray", "slurm")


def parse_executor(on: str) -> tuple[str, Mapping[str, Any]]:
    """The name and the options in a text such as `slurm:slurm_partition=gpu,timeout_min=60`.

    Raises:
        SettingError: no executor has this name, or the options have another form.
    """
    name, _, text = on.partition(":")
    if name not in EXECUTORS:
        raise SettingError(f"--on {on}: no executor is called {name!r}; {nearest(name, EXECUTORS)}")
    options = dict(parse_override(part) for part in text.split(",")) if text else {}
    if options and name == "local":
        raise SettingError(f"--on local takes no options; found {text!r}")
    return name, options


def executor_for(on: str, work: Work, jobs: int | None, most: int, out: Path) -> tuple[Executor, int]:
    """The executor and its number of workers: `jobs` (default: that of the executor), at most `most`.

    Raises:
        MissingExtraError: the package for the cluster is not installed.
        RunError: the cluster cannot be reached.
        SettingError: the options are wrong.
    """
    name, options = parse_executor(on)
    if name == "local":
        workers = max(1, min(local_workers(jobs), most))
        return Pool(work, workers), workers
    cluster = RayCluster(jobs, options) if name == "ray" else SlurmCluster(jobs, out.absolute() / "slurm", options)
    workers = max(1, min(cluster.workers, most))
    return Remote(work, cluster, workers, out.absolute() / FOLDER), workers


def local_workers(jobs: int | None) -> int:
    """`jobs`, or by default the number of cores."""
    return jobs or cpu_count() or 1

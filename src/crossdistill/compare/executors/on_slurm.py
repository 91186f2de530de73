"""Jobs on a Slurm cluster through submitit, one for each cell (extra: slurm)."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdistill.compare.executors.cluster import ClusterJob, Ended
from crossdistill.errors import MissingExtraError, RunError, SettingError

JOBS = 32
"""Default number of jobs at a time."""
MINUTES = 240


class SlurmCluster:
    """A Slurm cluster; with the option `cluster=local` the jobs run as processes on this machine.

    Options are submitit's parameters (`slurm_partition`, `timeout_min`, `gpus_per_node`, ...); by default a job has one
    processor and four hours.
    """

    def __init__(self, jobs: int | None, folder: Path, options: Mapping[str, Any]) -> None:
        try:
            self._submitit: Any = importlib.import_module("submitit")
        except ImportError as error:
            raise MissingExtraError("--on slurm", "submitit", "slurm") from error
        parameters = {"timeout_min": MINUTES, "cpus_per_task": 1, "name": "crossdistill", **options}
        cluster = parameters.pop("cluster", "slurm")
        try:
            self._executor = self._submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**parameters)
        except RuntimeError as error:
            raise RunError(f"--on slurm: {error}; `--on slurm:cluster=local` runs the jobs on this machine") from error
        except (TypeError, ValueError, NameError) as error:
            raise SettingError(f"--on slurm: {error}") from error
        self.workers = jobs or JOBS
        self._running: dict[str, Any] = {}

    def submit(self, job: ClusterJob) -> Any:
        """Queue a job; returns its handle."""
        handle = self._executor.submit(Resumed(job))
        self._running[handle.job_id] = handle
        return handle

    def ended(self, handle: Any) -> Ended | None:
        """The result of a job, from its files and Slurm; None while it waits or runs."""
        if not handle.done():
            return None
        self._running.pop(handle.job_id, None)
        try:
            kind, value = handle.result()
        except self._submitit.core.utils.FailedJobError as error:
            return Ended("failed", str(error))
        except self._submitit.core.utils.UncompletedJobError as error:
            return Ended("lost", f"its Slurm job ended without a result ({handle.state}): {_last_line(str(error))}")
        return Ended(kind, value)

    def close(self) -> None:
        """Cancel all running jobs."""
        for handle in self._running.values():
            handle.cancel(check=False)


class Resumed:
    """A job that is queued again and resumes when Slurm stops it, at its time limit or for another user."""

    def __init__(self, job: ClusterJob) -> None:
        self.job = job

    def __call__(self) -> tuple[str, Any]:
        """Execute the job."""
        return self.job()

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """The submission that submitit queues in its place: the same job, which resumes from the run's checkpoints."""
        helpers: Any = importlib.import_module("submitit.helpers")
        return helpers.DelayedSubmission(self)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]

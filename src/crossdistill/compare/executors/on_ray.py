"""Jobs on a Ray cluster whose machines share the comparison's folder (extra: ray)."""

import importlib
import os
from collections.abc import Mapping
from typing import Any

from crossdistill.compare.executors.cluster import ClusterJob, Ended
from crossdistill.errors import MissingExtraError, RunError, SettingError


class RayCluster:
    """The cluster at the option `address`, else at the variable RAY_ADDRESS, else a new one on this machine.

    The other options are Ray's resources of each job (`num_cpus`, by default one; `num_gpus`; `memory`). Ray reuses its
    worker processes, so each imports torch once.
    """

    def __init__(self, jobs: int | None, options: Mapping[str, Any]) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise MissingExtraError("--on ray", "ray", "ray") from error
        resources = {"num_cpus": 1, **options}
        address = str(resources.pop("address", "") or os.environ.get("RAY_ADDRESS", ""))
        cluster: dict[str, Any] = {"address": address} if address else {"num_cpus": jobs, "include_dashboard": False}
        try:
            # Ray's own retries are silent, and would start before this process learns that a worker was lost.
            self._call = self._ray.remote(_call).options(max_retries=0, **resources)
            self._ray.init(log_to_driver=False, **cluster)
        except ConnectionError as error:
            raise RunError(
                f"--on ray: no cluster answers at {address!r}: {error}; check the address (option `address` or "
                "RAY_ADDRESS), or omit it to start Ray on this machine"
            ) from error
        except (TypeError, ValueError) as error:
            raise SettingError(f"--on ray: {error}") from error
        self.workers = jobs or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, job: ClusterJob) -> Any:
        """Queue a job; returns its handle."""
        return self._call.remote(job)

    def ended(self, handle: Any) -> Ended | None:
        """The result of a job, without waiting; None while it waits or runs."""
        ready, _ = self._ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            kind, value = self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:
            return Ended("failed", str(error))
        except self._ray.exceptions.RayError as error:
            return Ended("lost", f"its Ray worker died or lost its connection: {' '.join(str(error).split())}")
        return Ended(kind, value)

    def close(self) -> None:
        """Disconnect from the cluster, which drops the jobs that this process has queued."""
        self._ray.shutdown()


def _call(job: ClusterJob) -> tuple[str, Any]:
    return job()

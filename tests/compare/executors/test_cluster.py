"""Jobs on other machines: messages through a folder, lost machines, and the calls to Ray and Slurm."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from facts import raises

from crossdistill.compare.executors.choose import executor_for, local_workers, parse_executor
from crossdistill.compare.executors.cluster import ClusterJob, Ended, Remote
from crossdistill.compare.executors.local import Message, Pool
from crossdistill.compare.executors.messages import Inbox, Outbox
from crossdistill.compare.executors.on_slurm import Resumed, SlurmCluster
from crossdistill.errors import MissingExtraError, SettingError


def work(task: str, send: Callable[[str, Any], None]) -> str:
    send("begin", ("teacher", 30))
    send("advance", 10)
    send("advance", 20)
    send("trained", "teacher")
    if task == "bad":
        raise SettingError("cannot be")
    return f"did {task}"


class Fake:
    """A cluster that runs a job at the second call of `ended`; machines of the given tasks are lost once each."""

    def __init__(self, *losses: str) -> None:
        self.losses = list(losses)
        self.most = self.running = 0
        self.closed = False

    def submit(self, job: ClusterJob) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        return SimpleNamespace(job=job, polls=0)

    def ended(self, handle: Any) -> Ended | None:
        handle.polls += 1
        if handle.polls < 2:
            return None
        self.running -= 1
        if handle.job.task in self.losses:
            self.losses.remove(handle.job.task)
            return Ended("lost", "its machine is gone")
        return Ended(*handle.job())

    def close(self) -> None:
        self.closed = True


def run(cluster: Fake, tasks: list[str], workers: int, folder: Path) -> list[Message]:
    waiting = list(range(len(tasks)))
    executor = Remote(work, cluster, workers, folder, poll_every_s=0.0)
    return list(executor.run(tasks, lambda: waiting.pop(0) if waiting else None))


def test_messages_arrive_in_order_and_complete(tmp_path: Path) -> None:
    outbox, inbox = Outbox(tmp_path / "messages" / "a"), Inbox(tmp_path / "messages" / "a")
    assert inbox.read() == []
    outbox("begin", ["teacher", 30])
    outbox("advance", 10)
    outbox("advance", 5)
    # Steps wait for a second, or for the next message of another kind.
    assert inbox.read() == [("begin", ["teacher", 30])]
    outbox("trained", "teacher")
    assert inbox.read() == [("advance", 15), ("trained", "teacher")]
    with (tmp_path / "messages" / "a").open("a") as file:
        file.write('["advance"')
    assert inbox.read() == []
    with (tmp_path / "messages" / "a").open("a") as file:
        file.write(", 3]\n")
    assert inbox.read() == [("advance", 3)]
    Outbox(tmp_path / "messages" / "a", write_every_s=0.0)("advance", 7)
    assert inbox.read() == [("advance", 7)]


def test_all_tasks_run_with_at_most_two_jobs_at_a_time(tmp_path: Path) -> None:
    cluster = Fake()
    messages = run(cluster, ["a", "b", "c", "bad", "d"], 2, tmp_path)
    assert cluster.most == 2
    assert cluster.closed
    ends = {message.task: (message.kind, message.value) for message in messages if message.kind in {"done", "failed"}}
    assert ends == {
        0: ("done", "did a"),
        1: ("done", "did b"),
        2: ("done", "did c"),
        3: ("failed", "cannot be"),
        4: ("done", "did d"),
    }
    first = [(message.kind, message.value) for message in messages if message.task == 0]
    assert first == [("begin", ["teacher", 30]), ("advance", 30), ("trained", "teacher"), ("done", "did a")]


def test_a_task_whose_machine_was_lost_is_tried_once_more(tmp_path: Path) -> None:
    messages = run(Fake("a", "b", "b"), ["a", "b", "c"], 1, tmp_path)
    kinds = {
        task: [m.kind for m in messages if m.task == task and m.kind in {"lost", "done", "failed"}] for task in range(3)
    }
    assert kinds == {0: ["lost", "done"], 1: ["lost", "failed"], 2: ["done"]}
    assert next(m.value for m in messages if m.kind == "failed") == "its machine is gone"


def test_closing_the_messages_cancels_the_jobs(tmp_path: Path) -> None:
    cluster = Fake()
    messages = Remote(work, cluster, 1, tmp_path).run(["a"], iter([0, None]).__next__)
    next(messages)
    messages.close()
    assert cluster.closed


@pytest.mark.parametrize(
    ("on", "parsed"),
    [
        ("local", ("local", {})),
        ("ray", ("ray", {})),
        ("ray:address=auto,num_gpus=0.5", ("ray", {"address": "auto", "num_gpus": 0.5})),
        ("slurm:slurm_partition=gpu,timeout_min=60", ("slurm", {"slurm_partition": "gpu", "timeout_min": 60})),
    ],
)
def test_an_executor_has_a_name_and_options(on: str, parsed: tuple[str, dict[str, Any]]) -> None:
    assert parse_executor(on) == parsed


@pytest.mark.parametrize(("on", "said"), [("rya", "'ray'"), ("local:a=1", "a=1"), ("ray:gpu", "FIELD=VALUE")])
def test_an_unknown_executor_is_refused(on: str, said: str) -> None:
    with raises(SettingError, said):
        parse_executor(on)


def test_a_local_pool_has_at_most_one_worker_per_task(tmp_path: Path) -> None:
    made, workers = executor_for("local", work, 7, 3, tmp_path)
    assert isinstance(made, Pool)
    assert workers == 3
    assert local_workers(5) == 5
    assert local_workers(None) >= 1


@pytest.mark.parametrize(("on", "package", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_missing_package_is_named_with_its_install_command(
    on: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with raises(MissingExtraError, f"crossdistill[{extra}]"):
        executor_for(on, work, 2, 2, tmp_path)


def test_a_job_that_slurm_stops_is_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    helpers = SimpleNamespace(DelayedSubmission=lambda job: seen.append(job) or job)
    monkeypatch.setattr(importlib, "import_module", lambda name: helpers)
    job = Resumed(ClusterJob(work, "a", "messages.jsonl"))
    assert job.checkpoint() is job
    assert seen == [job]


class Handle:
    """A submitit job."""

    def __init__(self, job: Any, end: Any) -> None:
        self.job, self.end, self.job_id, self.state = job, end, str(id(self)), "TIMEOUT"
        self.cancelled = False

    def done(self) -> bool:
        return self.end is not None

    def result(self) -> Any:
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    def cancel(self, check: bool) -> None:
        self.cancelled = True


def test_slurm_jobs_run_through_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UncompletedJobError(RuntimeError):
        pass

    class FailedJobError(UncompletedJobError):
        pass

    parameters: dict[str, Any] = {}
    handles: list[Handle] = []
    ends = iter([("done", "0.5"), FailedJobError("a fault"), UncompletedJobError("log\nslurmstepd: killed"), None])

    class AutoExecutor:
        def __init__(self, folder: Path, cluster: str) -> None:
            parameters.update(folder=folder, cluster=cluster)

        def update_parameters(self, **options: Any) -> None:
            parameters.update(options)

        def submit(self, job: Any) -> Handle:
            handles.append(Handle(job, next(ends)))
            return handles[-1]

    errors = SimpleNamespace(FailedJobError=FailedJobError, UncompletedJobError=UncompletedJobError)
    fake = SimpleNamespace(AutoExecutor=AutoExecutor, core=SimpleNamespace(utils=errors))
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    cluster = SlurmCluster(None, tmp_path, {"slurm_partition": "gpu", "timeout_min": 5})
    assert (parameters["cluster"], parameters["slurm_partition"]) == ("slurm", "gpu")
    assert (parameters["timeout_min"], parameters["cpus_per_task"]) == (5, 1)
    job = ClusterJob(work, "a", "messages.jsonl")
    ended = [cluster.ended(cluster.submit(job)) for _ in range(4)]
    assert ended[:2] == [Ended("done", "0.5"), Ended("failed", "a fault")]
    assert ended[2] == Ended("lost", "its Slurm job ended without a result (TIMEOUT): slurmstepd: killed")
    assert ended[3] is None
    cluster.close()
    assert [handle.cancelled for handle in handles] == [False, False, False, True]

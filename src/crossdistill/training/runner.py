"""The training loops: `run` trains all stages of a recipe, `fit` trains one stage, `validate` measures it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.data.workers import end_workers
from crossdistill.errors import FrozenError, NonFiniteError, StoppedError
from crossdistill.method import Method, Progress
from crossdistill.models.own_network import left_as_they_were
from crossdistill.network import Network
from crossdistill.outputs import Outputs
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.planning.part_size import rows_at_once
from crossdistill.planning.plan import Job, Plan, prepare
from crossdistill.planning.remarks import absent_inputs, frozen_parameters
from crossdistill.planning.sources import load_choices, save_choices
from crossdistill.recipe import Recipe
from crossdistill.report import Report
from crossdistill.run_folder.checkpoint import drop_checkpoints, load_outcome, save_outcome
from crossdistill.run_folder.data_record import check_data, record_data
from crossdistill.run_folder.folder import (
    check_folder,
    device_for,
    drop_leftover,
    held_by_all,
    resume_command,
    run_folders,
    start_run,
)
from crossdistill.run_folder.initial_weights import with_initial_weights
from crossdistill.run_folder.loggers import Tracking, require
from crossdistill.runtime import distributed
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.hashing import derived_seed, fingerprint, tensor_hash
from crossdistill.runtime.interruption import Interruption
from crossdistill.runtime.lock import Holder, Lock
from crossdistill.runtime.progress import Display, Quiet, Terminal, attended
from crossdistill.training.checkpointer import Saver, StageState, selected_parts
from crossdistill.training.evaluation import WithAccuracy, batches, few_rows
from crossdistill.training.monitor import Monitor, Pace, shown
from crossdistill.training.results import Outcome, finish
from crossdistill.training.selection import with_metric
from crossdistill.training.start import set_start
from crossdistill.training.step import Training
from crossdistill.training.teacher_accuracy import TeacherCheck

Stop = Callable[[], bool]
"""Returns whether the run stops; called after every step."""


def _never() -> bool:
    return False


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    share: Path | str | None = None,
    banks: Path | str | None = None,
    dataset: Dataset | None = None,
    display: Display | None = None,
    progress: bool = True,
    stop: Stop | None = None,
    split: str = "test",
    wait: bool = False,
    strict: bool = False,
) -> Report:
    """Train all stages of a recipe, then evaluate once on the test split.

    Networks that the program built itself and that train are copied: the originals keep their weights, and the trained
    student is written to the folder `student` of `out` (see `load_student`). Parameters with `requires_grad=False` do
    not train. On a terminal and in notebooks, bars show stage, epoch, loss, validation, speed and remaining time.

    Args:
        recipe: what to train.
        out: the run's folder. One process at a time computes in it.
        resume: continue a run that was interrupted. On a finished run this does nothing, or rewrites damaged files.
        share: a folder with finished stages, looked up by a key over everything that their numbers depend on. Runs add
            their stages to it. When several runs need a stage at the same time, on any machine, one trains it and the
            others wait.
        banks: a folder for stored outputs of frozen networks, which several runs may use at the same time; by default
            `banks` in `share`, or else in `out`.
        dataset: the recipe's data, if they are loaded already.
        display: where progress is shown, instead of the terminal.
        progress: False shows no bars.
        stop: called after every step; once it returns True, the run writes a checkpoint and ends. By default Ctrl-C
            does this, in the main thread and if the program does not handle SIGINT itself.
        split: the split for the results. With another one than "test", no row of the test split is read.
        wait: wait while another process computes in `out`, instead of raising RunError.
        strict: refuse a teacher that is no better than chance on the validation split, instead of warning of it.

    Raises:
        RecipeError: lists every fault of the recipe, before any training.
        DataError: arrays of the data were changed after a data set was made of them.
        RunError: the folder holds another run, or this one already; another process computes in it; or the conditions
            of the run have changed since it began.
        NonFiniteError: NaN or Inf in a loss; names the batch.
        StorageError: a file could not be written; files written before are intact.
        StoppedError: `stop` returned True; says how to resume.
    """
    out, share, banks = run_folders(out, share, banks)
    for data in (dataset, recipe.data):
        if isinstance(data, Dataset):
            data.check_unchanged()
    with ExitStack() as stack:
        stack.callback(end_workers)
        if stop is None:
            stop = stack.enter_context(Interruption((signal.SIGINT,), if_default=True))
        devices = stack.enter_context(distributed.devices(device_for(out, recipe, resume)))
        if display is None:
            display = stack.enter_context(Terminal()) if progress and devices.is_main and attended() else Quiet()
        report, _ = check_folder(out, recipe, resume, devices) if resume else (None, None)
        if report is None:
            waiting = _show_holder(display, str(out), "computes") if wait else None
            stack.enter_context(held_by_all(out, devices, waiting))
            # Again, now under the lock: the process that held it may have finished the run.
            report, damage = check_folder(out, recipe, resume, devices)
            if damage is not None:
                display.say(f"{damage}; what the run wrote at its end is written again")
        if report is not None:
            check_data(out, recipe, dataset, display.data)
            if devices.is_main:
                drop_leftover(out)
            display.say(f"{out} is finished already; nothing to do")
            return report
        networks = [member for member in (recipe.student, *recipe.teachers.values()) if isinstance(member, Network)]
        with left_as_they_were(networks):
            plan = _prepare(recipe, out, resume, dataset, devices, display)
            return _train(_Run(plan, out, share, banks, devices, display, stop, strict), split)


def _show_holder(display: Display, subject: str, activity: str) -> Callable[[Holder], None]:
    """A function that shows which process holds the lock for which this one waits."""
    return lambda holder: display.say(f"{subject}: waits for {holder}, which {activity} it")


def _prepare(
    recipe: Recipe, out: Path, resume: bool, dataset: Dataset | None, devices: Devices, display: Display
) -> Plan:
    """Load the data, plan all stages, and start the run in its folder; this process holds the folder's lock."""
    devices.reset_peak()
    require(recipe.tracking)
    if dataset is None:
        dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
    for line in dataset.facts():
        display.say(f"data {dataset.name!r}: {line}")
    weighted = with_initial_weights(recipe, dataset, out, devices, display.say)
    choices = load_choices(out) if resume else None
    plan = prepare(weighted, dataset, devices.device, choices, devices.ranks)
    trained = {name for job in plan.jobs for name in job.trained} - plan.noted
    for line in (*plan.notes, *absent_inputs(plan.dataset, plan.members), *frozen_parameters(plan.members, trained)):
        display.say(line)
    if devices.is_main:
        record_data(out, dataset)
    start_run(out, recipe, devices)
    for job in plan.jobs:
        chosen = job.stage.method.chosen_besides(recipe.stages[job.index].method)
        if chosen:
            display.say(f"{job.stage.name}: chosen: {chosen}")
    if devices.is_main:
        save_choices(out, {job.folder: job.choices for job in plan.jobs})
    return plan


@dataclass(frozen=True, slots=True)
class _Run:
    """The arguments that all stages of a run share."""

    plan: Plan
    out: Path
    share: Path | None
    banks: Path
    devices: Devices
    display: Display
    stop: Stop
    strict: bool = False


def _train(run: _Run, split: str) -> Report:
    """Train all stages, and write the results."""
    plan, devices = run.plan, run.devices
    memory = devices.peak_memory()
    with Tracking(run.out, plan.recipe.tracking, plan.recipe.name, silent=not devices.is_main) as tracking:
        check = TeacherCheck(plan, devices, run.display, run.strict)
        if not (run.out / "stages").is_dir():
            check.at_start()
        outcomes = [_finished_stage(run, job, tracking, check) for job in plan.jobs]
    return finish(plan, run.out, outcomes, devices, split, memory)


def _finished_stage(run: _Run, job: Job, tracking: Tracking, check: TeacherCheck) -> Outcome:
    """The outcome of a stage: read from this run's folder or from the shared folder, or else trained now."""
    share, modules, stage_folder = run.share, job.modules(), run.out / "stages" / job.folder
    if share is not None and job.unkeyed:
        reasons = "; ".join(job.unkeyed[:3]) + (f"; and {len(job.unkeyed) - 3} more" if len(job.unkeyed) > 3 else "")
        run.display.say(f"{job.stage.name}: not shared with other runs, since its key would be incomplete: {reasons}")
        share = None
    outcome = load_outcome(stage_folder, modules, job.key) or _copied_from(share, run, job, tracking)
    if outcome is None:
        # The lock coordinates runs of one rank each. A run of several ranks does not take it.
        lock = Lock(share / "locks" / job.key) if share is not None and run.devices.ranks == 1 else None
        with nullcontext() if lock is None else lock.held(_show_holder(run.display, job.stage.name, "trains")):
            # Again, now under the lock: the process that held it may have trained the stage.
            outcome = None if lock is None else _copied_from(share, run, job, tracking)
            if outcome is None:
                outcome = _train_stage(run, job, tracking, check)
                run.devices.wait()
                if run.devices.is_main:
                    for folder in [stage_folder, *([] if share is None else [share / job.key])]:
                        save_outcome(folder, modules, outcome)
                run.devices.wait()
    tracking.finished_bytes = int(outcome["metrics"])
    check.update(job, outcome)
    if run.devices.is_main:
        drop_checkpoints(run.out / "checkpoints")
    for module in modules.values():
        module.requires_grad_(False).eval()
    return Outcome(job.stage.name, outcome)


def _copied_from(share: Path | None, run: _Run, job: Job, tracking: Tracking) -> dict[str, Any] | None:
    """Copy the outcome of a stage from the shared folder into this run; None if it is not there."""
    outcome = None if share is None else load_outcome(share / job.key, job.modules(), job.key)
    if outcome is not None:
        run.display.say(f"{job.stage.name}: reused from another run")
        outcome |= {"metrics": tracking.position()}
        if run.devices.is_main:
            save_outcome(run.out / "stages" / job.folder, job.modules(), outcome)
    return outcome


def _train_stage(run: _Run, job: Job, tracking: Tracking, check: TeacherCheck) -> dict[str, Any]:
    """Fill the banks of a stage, measure its teachers, and train it; returns its `outcome.json`."""
    run.devices.reset_peak()
    job, seconds = attach_banks(job, run.plan.recipe.bank, run.banks, run.devices, run.display)
    teachers = check.measure(job)
    outcome = fit(run.plan, job, run.out, run.devices, tracking, run.display, run.stop)
    outcome |= {"seconds": outcome["seconds"] + seconds, "bank_seconds": seconds, "teachers": teachers}
    return outcome if job.stage.ema is None else outcome | {"ema": job.stage.ema}


def fit(
    plan: Plan, job: Job, out: Path, devices: Devices, tracking: Tracking, display: Display, stop: Stop = _never
) -> dict[str, Any]:
    """Train one stage from its start or newest checkpoint, load the selected weights, and return its `outcome.json`.

    Raises:
        NonFiniteError: NaN or Inf in a loss, a gradient or a validation value.
        StoppedError: `stop` returned True; a checkpoint was written.
        FrozenError: a weight that does not train in this stage has changed.
    """
    stage, steps = job.stage, job.order.steps
    complete = set_start(plan, job, devices.device)
    before = _frozen_fingerprints(plan, job)
    training = Training(job, [*plan.members.values(), *(other.method for other in plan.jobs)], devices, out)
    state = StageState(out, select_by=stage.select_by)
    saver = Saver(plan.recipe, job, training, state, out / "checkpoints", devices, tracking)
    if type(job.method).measure is not Method.measure:
        job.method.measure(_measuring_pass(plan, job, training, devices), job.student, job.teachers)
    if training.ema is not None:
        display.say(f"{stage.name}: {training.ema.note(stage.epochs * steps)}")
    monitor = Monitor(stage.name, devices.device.type, tracking, saver.kept, state.totals)
    pace = Pace(stage, monitor)
    first_epoch, first_step = saver.resume()
    if (first_epoch, first_step) != (0, 0):
        display.say(f"{stage.name}: resumes from epoch {first_epoch}, step {first_step}")
    display.begin(stage.name, stage.epochs * steps)
    display.advance(first_epoch * steps + first_step)
    for epoch in range(first_epoch, stage.epochs):
        skipped = first_step if epoch == first_epoch else 0
        for step, (rows, parts) in enumerate(training.batches(job.order.epoch(epoch, skipped), epoch), skipped):
            progress = Progress(epoch, stage.epochs, step, steps, devices.gather)
            check_due = monitor.add(rows, progress, training.step(rows, progress, parts))
            display.advance()
            # Ranks have to agree on stopping, which synchronises them: only when the numbers are checked.
            stopping = devices.same(str(stop())) == "True" if check_due or devices.ranks == 1 else False
            if check_due or stopping or saver.due(step):
                monitor.check()
                display.status(pace.text(epoch))
            if stopping or saver.due(step):
                saver.save(epoch, step + 1)
            if stopping:
                raise StoppedError(
                    f"stopped in stage {stage.name!r}, epoch {epoch}, after step {step}, and saved; go on with: "
                    f"{resume_command(out, plan.recipe, devices.ranks)}"
                )
        monitor.end_epoch(Progress(epoch, stage.epochs, steps, steps), job.method.epoch_logs)
        training.weighting.after_epoch(devices.add_up if devices.ranks > 1 else None)
        pace.validated(epoch, steps, _validate_epoch(epoch, job, training, devices, state))
        if saver.due_after_epoch():
            saver.save(epoch + 1, 0)
    if complete and not stage.epochs:
        pace.validated(0, 0, _validate_epoch(0, job, training, devices, state))
    training.use_average()
    state.load_best(selected_parts(job))
    changed = [name for name, value in _frozen_fingerprints(plan, job).items() if value != before[name]]
    if changed:
        raise FrozenError(f"stage {stage.name!r} changed {', '.join(map(repr, changed))}, which it does not train")
    display.end(state.note(saver.seconds(), stage.epochs))
    return {
        "key": job.key,
        "stage": stage.name,
        "seconds": saver.seconds(),
        "peak_memory_mb": devices.peak_memory(),
        "selected": state.chosen(),
        "history": state.history,
        "metrics": tracking.position(),
    }


def _validate_epoch(epoch: int, job: Job, training: Training, devices: Devices, state: StageState) -> dict[str, float]:
    """Validate after an epoch, and keep the best weights so far."""
    with training.averaged():
        validation, judged = with_metric(job, training, devices, validate(job, training, devices))
        state.history.append({"epoch": epoch, **validation})
        state.keep_best(epoch, judged, selected_parts(job) if job.stage.select == "best" else {})
    return validation


def _measuring_pass(plan: Plan, job: Job, training: Training, devices: Devices) -> Iterator[Batch]:
    """The training rows, shuffled by the recipe's seed, since methods may use a batch as a random sample."""
    generator = torch.Generator().manual_seed(derived_seed("measure", plan.recipe.seed))
    train = job.dataset.splits["train"]
    rows = train[torch.randperm(len(train), generator=generator)]
    # The augmented views of the first epoch.
    view = job.dataset.views(rows, job.order.seed, 0)
    few = few_rows(job.dataset, rows, devices.device, only=job.reads, view=view)

    def all_outputs(batch: Batch) -> list[Outputs]:
        return [source(batch) for source in (job.student, *job.teachers.values())]

    training.eval_mode()
    size = rows_at_once(all_outputs, few, len(rows), devices.device, compiled=job.stage.compile)
    training.train_mode()
    return batches(job.dataset, rows, devices.device, size, only=job.reads, view=view)


@torch.no_grad()
def validate(job: Job, training: Training, devices: Devices) -> dict[str, float]:
    """Means over the validation split, on all ranks, of the values by which the method selects its parts.

    Lower is better. "accuracy" is the student's; it is there if the student trains and the method reads its logits.
    """
    devices.agree(job.modules().values())
    training.eval_mode()
    totals: dict[str, Tensor] = {}
    bad: list[int] = []
    rows = job.dataset.splits["validation"][devices.rank :: devices.ranks]
    if training.part_rows is None:
        training.part_rows = rows_at_once(
            lambda batch: job.method.validate(batch, job.student, job.teachers),
            few_rows(job.dataset, rows, devices.device, only=job.reads),
            len(rows),
            devices.device,
            compiled=job.stage.compile,
        )
    student = WithAccuracy(job.student)
    for batch in batches(job.dataset, rows, devices.device, training.part_rows, only=job.reads):
        for name, values in job.method.validate(batch, student, job.teachers).items():
            sum_and_count = torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])
            totals[name] = totals[name] + sum_and_count if name in totals else sum_and_count
            if not values.isfinite().all():
                bad += (batch.ids[~values.isfinite()] if len(values) == len(batch) else batch.ids).tolist()
    training.train_mode()
    bad_ids = torch.tensor(sorted({row for part in devices.everyone(bad) for row in part}))
    if len(bad_ids):
        raise NonFiniteError(
            f"stage {job.stage.name!r}: NaN or Inf on the validation split, for the sample ids {shown(bad_ids)}; "
            "check these samples; if they are valid, lower the learning rate or set clip_norm"
        )
    if job.student.name in job.trained:
        totals["accuracy"] = student.counts.to(devices.device)
    sums = {name: devices.add_up(total) for name, total in totals.items()}
    # A part whose modality is absent in the whole split has no rows, so no mean.
    return {name: float(total / count) for name, (total, count) in sums.items() if float(count)}


def _frozen_fingerprints(plan: Plan, job: Job) -> dict[str, str]:
    """Fingerprints of all weights in the run that must not change in this stage."""
    prints = {name: fingerprint(network) for name, network in plan.members.items() if name not in job.trained}
    for name, (network, taps) in job.trained.items():
        # A network that trains only at some taps is frozen elsewhere.
        below = tuple(f"{tap}." for tap in taps)
        rest = {key: value for key, value in network.module.state_dict().items() if not key.startswith(below)}
        prints |= {f"{name}.{key}": tensor_hash(value) for key, value in rest.items()} if taps else {}
    methods = {f"method of {earlier.stage.name}": earlier.method for earlier in plan.jobs if earlier.index < job.index}
    return prints | {name: fingerprint(method) for name, method in methods.items()}

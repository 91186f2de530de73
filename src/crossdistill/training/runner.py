"""The loops: `run` a recipe, `fit` a stage, `validate` and evaluate. They read from top to bottom."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.errors import FrozenError, NonFiniteError, StoppedError
from crossdistill.method import Method, Progress
from crossdistill.models.own_network import left_as_they_were
from crossdistill.network import Network
from crossdistill.outputs import Outputs
from crossdistill.planning.attach_banks import supply
from crossdistill.planning.part_size import rows_at_once
from crossdistill.planning.plan import Job, Plan, prepare
from crossdistill.planning.preflight import absences, standing_still
from crossdistill.planning.sources import load_choices, save_choices
from crossdistill.recipe import Recipe
from crossdistill.report import Report
from crossdistill.run_folder.checkpoint import drop_checkpoints, load_outcome, restore, save_outcome
from crossdistill.run_folder.folder import device_for, drop_leftover, examine, go_on, held_by_all, run_folder, take
from crossdistill.run_folder.initial_weights import begun
from crossdistill.run_folder.loggers import Tracking, require
from crossdistill.runtime.distributed import Devices, devices
from crossdistill.runtime.hashing import derived_seed, fingerprint, tensor_hash
from crossdistill.runtime.interruption import Interruption
from crossdistill.runtime.lock import Holder, Lock
from crossdistill.runtime.progress import Display, Quiet, Terminal, attended
from crossdistill.training.checkpointer import Found, Saver, parts_of
from crossdistill.training.evaluation import Overheard, batches
from crossdistill.training.monitor import Pace, Watch, shown
from crossdistill.training.results import Outcome, finish
from crossdistill.training.step import Training
from crossdistill.training.teacher_accuracy import TeacherCheck

Stop = Callable[[], bool]
"""Whether a run is to stop at the next step; asked after every one."""


def _never() -> bool:
    return False


def run(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    share: Path | None = None,
    banks: Path | None = None,
    dataset: Dataset | None = None,
    display: Display | None = None,
    progress: bool = True,
    stop: Stop | None = None,
    split: str = "test",
    wait: bool = False,
) -> Report:
    """Train everything that a recipe says, and evaluate on the test split once, at the end.

    `share` is a folder in which stages are looked up by everything that their numbers depend on, and left for
    other runs; of several runs at the same time, on any machine, one trains a stage and the others wait for it.
    `banks` is a folder for what frozen networks gave, which several runs may use at a time; by default `banks` in
    `share`, or else in the run's own folder. `dataset` saves loading the recipe's data again. A run that was killed
    goes on with `resume`; on a finished one it does nothing, or writes again what is damaged. Networks of your own that
    train are copied: yours stay as they were, and the trained student is in the folder `student` of `out`
    (`load_student`). Parameters that come with `requires_grad=False` do not train. On a terminal and in notebooks bars
    show stage, epoch, loss, validation, rows per second and the time that is left, unless `progress` is False or
    another `display` is given. Once `stop` gives True, it saves where it is and ends; without a `stop` of yours, Ctrl-C
    does that (in the main thread, where the program handles it in no other way). With another `split`, results are of
    that split, and no row of the test split is read. One process at a
    time computes in `out`; with `wait` a second one waits.

    Raises:
        RecipeError: every fault of the recipe, before any training.
        DataError: arrays of the data were changed after a data set was made of them.
        RunError: the folder holds another run, or this one already; another process computes it; or what is needed to
            go on differs.
        NonFiniteError: NaN or Inf in a loss; names the batch.
        StorageError: something could not be written; what was written before is intact.
        StoppedError: `stop` gave True; says how to go on.
    """
    out = run_folder(out)
    for data in (dataset, recipe.data):
        if isinstance(data, Dataset):
            data.check_unchanged()
    with ExitStack() as held:
        if stop is None:
            stop = held.enter_context(Interruption((signal.SIGINT,), if_default=True))
        where = held.enter_context(devices(device_for(out, recipe, resume)))
        if display is None:
            display = held.enter_context(Terminal()) if progress and where.is_main and attended() else Quiet()
        done, _ = examine(out, recipe, resume, where) if resume else (None, None)
        if done is None:
            held.enter_context(held_by_all(out, where, _said(display, out) if wait else None))
            # Whoever held it before may have finished it.
            done, damage = examine(out, recipe, resume, where)
            if done is None:
                if damage is not None:
                    display.say(f"{damage}; what the run wrote at its end is written again")
                given = [one for one in (recipe.student, *recipe.teachers.values()) if isinstance(one, Network)]
                with left_as_they_were(given):
                    return _computed(recipe, out, resume, share, banks, dataset, where, display, stop, split)
        if where.is_main:
            drop_leftover(out)
        display.say(f"{out} is finished already; nothing to do")
        return done


def _said(display: Display, out: Path) -> Callable[[Holder], None]:
    return lambda holder: display.say(f"{out}: waits for {holder}, which computes it")


def _computed(
    recipe: Recipe,
    out: Path,
    resume: bool,
    share: Path | None,
    banks: Path | None,
    dataset: Dataset | None,
    devices: Devices,
    display: Display,
    stop: Stop,
    split: str,
) -> Report:
    """All stages, and the results; the folder is held."""
    devices.reset_peak()
    require(recipe.tracking)
    if dataset is None:
        dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
    for line in filter(None, (dataset.how_split, *dataset.remarks())):
        display.say(f"data {dataset.name!r}: {line}")
    decided = load_choices(out) if resume else None
    plan = prepare(begun(recipe, dataset, out, devices, display.say), dataset, devices.device, decided, devices.ranks)
    trained = {name for job in plan.jobs for name in job.trained}
    for line in (*absences(dataset, plan.members), *standing_still(plan.members, trained)):
        display.say(line)
    take(out, recipe, devices)
    for job in plan.jobs:
        chosen = job.stage.method.chosen_besides(recipe.stages[job.index].method)
        if chosen:
            display.say(f"{job.stage.name}: chosen: {chosen}")
    if devices.is_main:
        save_choices(out, {job.folder: job.choices for job in plan.jobs})
    banks = banks or (share or out) / "banks"
    outcomes, memory = [], devices.peak_memory()
    with Tracking(out, recipe.tracking, recipe.name, silent=not devices.is_main) as tracking:
        check = TeacherCheck(plan, devices, display)
        for job in plan.jobs:
            outcomes.append(_stage(plan, job, out, share, banks, devices, tracking, display, check, stop))
    return finish(plan, out, outcomes, devices, split, memory)


def _stage(
    plan: Plan,
    job: Job,
    out: Path,
    share: Path | None,
    banks: Path,
    devices: Devices,
    tracking: Tracking,
    display: Display,
    check: TeacherCheck,
    stop: Stop,
) -> Outcome:
    """A stage's outcome: from this run, from a shared folder, or by training now."""
    modules, own = job.modules(), out / "stages" / job.folder
    if share is not None and job.unkeyed:
        display.say(f"{job.stage.name}: not shared with other runs, since no key says all of it: {_first(job.unkeyed)}")
        share = None
    about = load_outcome(own, modules, job.key) or _shared(job, own, share, devices, tracking, display)
    if about is None:
        # Several ranks are one run: runs of one rank alone look out for each other.
        lock = Lock(share / "locks" / job.key) if share is not None and devices.ranks == 1 else None
        with nullcontext() if lock is None else lock.held(_waiting(job, display)):
            # Whoever held the lock before may have trained it.
            about = None if lock is None else _shared(job, own, share, devices, tracking, display)
            if about is None:
                devices.reset_peak()
                supplied, seconds = supply(job, plan.recipe.bank, banks, devices, display)
                teachers = check.before(supplied)
                about = fit(plan, supplied, out, devices, tracking, display, stop)
                about |= {"seconds": about["seconds"] + seconds, "bank_seconds": seconds, "teachers": teachers}
                about |= {} if job.stage.ema is None else {"ema": job.stage.ema}
                devices.wait()
                if devices.is_main:
                    for folder in [own, *([] if share is None else [share / job.key])]:
                        save_outcome(folder, modules, about)
                devices.wait()
    tracking.settled = int(about["metrics"])
    check.after(job, about)
    if devices.is_main:
        drop_checkpoints(out / "checkpoints")
    for module in modules.values():
        module.requires_grad_(False).eval()
    return Outcome(job.stage.name, about)


def _first(reasons: Sequence[str]) -> str:
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _shared(
    job: Job, own: Path, share: Path | None, devices: Devices, tracking: Tracking, display: Display
) -> dict[str, Any] | None:
    """Take a stage's outcome over from the shared folder, if there is one and it lies there."""
    about = None if share is None else load_outcome(share / job.key, job.modules(), job.key)
    if about is not None:
        display.say(f"{job.stage.name}: taken over from a run with the same {job.stage.name}")
        about |= {"metrics": tracking.position()}
        if devices.is_main:
            save_outcome(own, job.modules(), about)
    return about


def _waiting(job: Job, display: Display) -> Callable[[Holder], None]:
    return lambda holder: display.say(f"{job.stage.name}: waits for {holder}, which trains it too")


def fit(
    plan: Plan, job: Job, out: Path, devices: Devices, tracking: Tracking, display: Display, stop: Stop = _never
) -> dict[str, Any]:
    """Train one stage from its start, or from its newest checkpoint; leaves the selected state in the modules.

    Raises:
        NonFiniteError: NaN or Inf in a loss, a gradient or a validation value.
        StoppedError: `stop` gave True; a checkpoint was written.
        FrozenError: something that does not train in this stage has moved.
    """
    stage, steps = job.stage, job.order.steps
    torch.manual_seed(derived_seed("stage", plan.recipe.seed, stage.name))
    if job.initial is not None:
        restore({job.student.name: plan.members[job.student.name]}, job.initial)
    before = _still(plan, job)
    training = Training(job, [*plan.members.values(), *(other.method for other in plan.jobs)], devices, out)
    state = Found(out)
    saver = Saver(plan.recipe, job, training, state, out / "checkpoints", devices, tracking)
    _measure(plan, job, training, devices)
    if training.ema is not None:
        display.say(f"{stage.name}: {training.ema.note(stage.epochs * steps)}")
    watch = Watch(stage.name, devices.device.type, tracking, saver.kept, state.totals)
    pace = Pace(stage, watch)
    start = saver.resume()
    if start != (0, 0):
        display.say(f"{stage.name}: goes on from epoch {start[0]}, step {start[1]}")
    display.begin(stage.name, stage.epochs * steps)
    display.advance(start[0] * steps + start[1])
    for epoch in range(start[0], stage.epochs):
        first = start[1] if epoch == start[0] else 0
        for step, rows in enumerate(job.order.epoch(epoch, first), first):
            progress = Progress(epoch, stage.epochs, step, steps, devices.gather)
            looking = watch.add(rows, progress, training.step(rows, progress))
            display.advance()
            # Several ranks have to agree, for which they wait for each other.
            stopping = devices.same(str(stop())) == "True" if looking or devices.ranks == 1 else False
            if looking or stopping or saver.due(step):
                watch.look()
                display.status(pace.text(epoch))
            if stopping or saver.due(step):
                saver.save(epoch, step + 1)
            if stopping:
                raise StoppedError(
                    f"stopped in stage {stage.name!r}, epoch {epoch}, after step {step}, and saved; go on with: "
                    f"{go_on(out, plan.recipe, devices.ranks)}"
                )
        watch.end_epoch(Progress(epoch, stage.epochs, steps, steps), job.method.epoch_logs)
        training.weighting.after_epoch(devices.add_up if devices.ranks > 1 else None)
        pace.validated(epoch, steps, _judged(epoch, job, training, devices, state))
        if saver.due_after_epoch():
            saver.save(epoch + 1, 0)
    training.leave()
    state.bring_back(parts_of(job))
    moved = [name for name, print_ in _still(plan, job).items() if print_ != before[name]]
    if moved:
        raise FrozenError(f"stage {stage.name!r} moved {', '.join(map(repr, moved))}, which does not train in it")
    display.end(state.note(saver.seconds()))
    return {
        "key": job.key,
        "stage": stage.name,
        "seconds": saver.seconds(),
        "peak_memory_mb": devices.peak_memory(),
        "selected": state.chosen(),
        "history": state.history,
        "metrics": tracking.position(),
    }


def _judged(epoch: int, job: Job, training: Training, devices: Devices, state: Found) -> dict[str, float]:
    """What validation finds after an epoch; the best states so far are kept."""
    with training.judged():
        found = validate(job, training, devices)
        state.history.append({"epoch": epoch, **found})
        state.consider(epoch, found, parts_of(job) if job.stage.select == "best" else {})
    return found


def _measure(plan: Plan, job: Job, training: Training, devices: Devices) -> None:
    """The method's own pass over the training data, for those that have one."""
    if type(job.method).measure is not Method.measure:
        job.method.measure(_looked_through(plan, job, training, devices), job.student, job.teachers)


def _looked_through(plan: Plan, job: Job, training: Training, devices: Devices) -> Iterator[Batch]:
    """The training rows in a random order of the recipe's seed, since methods may look at a batch as a sample."""
    source = torch.Generator().manual_seed(derived_seed("measure", plan.recipe.seed))
    train = job.dataset.splits["train"]
    rows = train[torch.randperm(len(train), generator=source)]
    # As the first epoch sees them.
    view = job.dataset.views(rows, job.order.seed, 0)

    def few(number: int) -> Batch:
        part = None if view is None else view[:number]
        return job.dataset.batch(rows[:number], only=job.reads, view=part).to(devices.device)

    def everybody(batch: Batch) -> list[Outputs]:
        return [source(batch) for source in (job.student, *job.teachers.values())]

    training.eval_mode()
    size = rows_at_once(everybody, few, len(rows), devices.device, compiled=job.stage.compile)
    training.train_mode()
    return batches(job.dataset, rows, devices.device, size, only=job.reads, view=view)


@torch.no_grad()
def validate(job: Job, training: Training, devices: Devices) -> dict[str, float]:
    """Mean over the validation split of what the method judges its parts by (lower is better), over all ranks.

    "accuracy" is the learner's, where it trains and the method looks at its logits.
    """
    devices.agree(job.modules().values())
    training.eval_mode()
    totals: dict[str, Tensor] = {}
    bad: list[int] = []
    rows = job.dataset.splits["validation"][devices.rank :: devices.ranks]
    if training.part_rows is None:
        training.part_rows = rows_at_once(
            lambda batch: job.method.validate(batch, job.student, job.teachers),
            lambda number: job.dataset.batch(rows[:number], only=job.reads).to(devices.device),
            len(rows),
            devices.device,
            compiled=job.stage.compile,
        )
    student = Overheard(job.student)
    for batch in batches(job.dataset, rows, devices.device, training.part_rows, only=job.reads):
        for name, values in job.method.validate(batch, student, job.teachers).items():
            pair = torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])
            totals[name] = totals[name] + pair if name in totals else pair
            if not values.isfinite().all():
                bad += (batch.ids[~values.isfinite()] if len(values) == len(batch) else batch.ids).tolist()
    training.train_mode()
    everywhere = torch.tensor(sorted({row for part in devices.everyone(bad) for row in part}))
    if len(everywhere):
        raise NonFiniteError(
            f"stage {job.stage.name!r}: NaN or Inf on the validation split, for the sample ids {shown(everywhere)}; "
            "look at these samples; if they are sound, lower the learning rate or set clip_norm"
        )
    if job.student.name in job.trained:
        totals["accuracy"] = student.counts.to(devices.device)
    whole = {name: devices.add_up(pair) for name, pair in totals.items()}
    # A part that no row of the split speaks of (its modality is absent there) is not judged.
    return {name: float(pair[0] / pair[1]) for name, pair in whole.items() if float(pair[1])}


def _still(plan: Plan, job: Job) -> dict[str, str]:
    """Fingerprints of everything in the run that must not move in this stage."""
    found = {name: fingerprint(network) for name, network in plan.members.items() if name not in job.trained}
    for name, (network, taps) in job.trained.items():
        # A member that trains at some taps alone stands still everywhere else.
        rest = {key: value for key, value in network.module.state_dict().items() if not key.startswith(_below(taps))}
        found |= {f"{name}.{key}": tensor_hash(value) for key, value in rest.items()} if taps else {}
    methods = {f"method of {other.stage.name}": other.method for other in plan.jobs if other.index < job.index}
    return found | {name: fingerprint(method) for name, method in methods.items()}


def _below(taps: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{tap}." for tap in taps)

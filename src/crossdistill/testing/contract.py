"""The contract of every method, here or in another package: one function per clause, one line each in the table.

`check_method` checks a method's settings against all clauses on toy data.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError, SignalError
from crossdistill.method import STUDENT
from crossdistill.network import Network
from crossdistill.outputs import Cut, Outputs, Signal
from crossdistill.planning.sources import TRAINS
from crossdistill.runtime.hashing import fingerprint
from crossdistill.teacher import Live, Teacher, TeacherBase
from crossdistill.testing.agreement import TOLERANCE, same_tensors
from crossdistill.testing.ranks import compare_with_one
from crossdistill.testing.rehearsal import (
    ROWS,
    Contract,
    Rehearsal,
    Settings,
    Trains,
    with_absent,
    with_labels_hidden,
    with_targets_missing,
    with_views,
)
from crossdistill.testing.several_teachers import several_teachers
from crossdistill.testing.toy import toy_dataset


def check_method(
    settings: Settings,
    *,
    trains: Trains = "student",
    student: Network | None = None,
    teachers: Mapping[str, Network] | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Check a method against the contract that the runner relies on.

    `settings` are the method's, or a function of the teachers' names where they name teachers. `trains` selects what
    trains in the method's stage: the student with the method's own modules, these alone, or all members. By default
    the check uses toy data of three modalities with a small student and three teachers. Networks of your own are given
    together (a `student` and `teachers`), with the `dataset` that they read; they have neither BatchNorm nor dropout,
    because a batch and its parts are compared.

    Raises:
        AssertionError: a clause does not hold; the message names the clause and the observation.
    """
    contract = _contract(settings, trains, student, teachers, dataset)
    for clause, check in CLAUSES.items():
        hold(contract, clause, check)


def check_ranks(
    settings: Settings,
    *,
    trains: Trains = "student",
    student: Network | None = None,
    teachers: Mapping[str, Network] | None = None,
    dataset: Dataset | None = None,
    ranks: int = 2,
    tolerance: float = TOLERANCE,
) -> None:
    """Check that several processes compute what one does; this takes seconds.

    The arguments are those of `check_method`; the classes of settings and networks have to be importable, since
    they are sent to the processes. `tolerance` is absolute and relative; sums over parts of the rows round differently.

    Raises:
        AssertionError: the processes fail, block each other, or compute other values.
    """
    contract = _contract(settings, trains, student, teachers, dataset)
    hold(contract, f"{ranks} processes compute what one does", lambda held: compare_with_one(held, ranks, tolerance))


def _contract(
    settings: Settings,
    trains: Trains,
    student: Network | None,
    teachers: Mapping[str, Network] | None,
    dataset: Dataset | None,
) -> Contract:
    if student is None and teachers is None:
        return Contract(settings, toy_dataset(("first", "second", "third")) if dataset is None else dataset, trains)
    if student is None or not teachers or dataset is None:
        raise SettingError("networks of your own: pass student=, teachers= and the dataset= that they read together")
    return Contract(settings, dataset, trains, {"student-network": student, **teachers})


def hold(contract: Contract, clause: str, check: Callable[[Contract], None]) -> None:
    """Check one clause.

    Raises:
        AssertionError: it does not hold; the message names the method, the clause and the observation.
    """
    who = contract.config(list(contract.members(3))[1:]).name
    try:
        check(contract)
    except AssertionError as error:
        raise AssertionError(f"{who} breaks the contract: {clause}. {error}") from error
    except Exception as error:
        raise AssertionError(
            f"{who} breaks the contract: {clause}. It raised {type(error).__name__}: {error}"
        ) from error


def _loss_falls(contract: Contract) -> None:
    run = Rehearsal(contract)
    batch = run.batch()
    before = run.loss(batch).detach()
    for number in range(12):
        logs = run.step(run.rows(), number)
        bad = [name for name, value in logs.items() if not bool(value.isfinite().all())]
        assert not bad, f"NaN or Inf in {bad} at step {number}"
    after = run.loss(batch).detach()
    assert after < before, f"It was {before:.6f} and is {after:.6f} after 12 steps on the same {ROWS} rows"


def _frozen_stay(contract: Contract) -> None:
    # With BatchNorm and dropout: in train mode they would change a frozen teacher or make it noisy.
    run = Rehearsal(contract, normalised=contract.given is None)
    frozen = {name: network for name, network in run.plan.members.items() if name not in run.job.trained}
    before = {name: fingerprint(network) for name, network in frozen.items()}
    for number in range(3):
        run.step(run.rows(number), number)
    for name, network in frozen.items():
        assert fingerprint(network) == before[name], f"{name!r} does not train, but its weights or buffers moved"
        assert not any(module.training for module in network.modules()), f"{name!r} was set to train mode"
        touched = [key for key, weight in network.named_parameters() if weight.requires_grad or weight.grad is not None]
        assert not touched, f"{name!r} does not train, but got gradients: {touched}"


def _owns_nothing_else(contract: Contract) -> None:
    run = Rehearsal(contract)
    run.forward(run.batch())
    foreign: dict[int, str] = {}
    for name, network in run.plan.members.items():
        foreign |= {id(module): f"a layer of {name!r}" for module in network.modules()}
        foreign |= {id(parameter): f"weights of {name!r}" for parameter in network.parameters()}
    foreign |= {id(source): f"the source {name!r}" for name, source in run.job.teachers.items()}
    foreign[id(run.job.student)] = "the student"
    for path, value in _reachable(run.job.method):
        held = foreign.get(id(value)) or ("a teacher" if isinstance(value, TeacherBase | Network) else None)
        assert held is None, f"The method stores {held} in {path}; student and teachers are arguments, never attributes"


def _reachable(method: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every object that a method refers to, through modules, containers and plain attributes, with its path."""
    todo: list[tuple[str, Any]] = [(type(method).__name__, method)]
    seen: set[int] = set()
    while todo:
        path, value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if isinstance(value, nn.Module):
            todo += [(f"{path}.{key}", part) for key, part in vars(value).items()]
        elif isinstance(value, Mapping):
            todo += [(f"{path}[{key!r}]", part) for key, part in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            todo += [(f"{path}[{index}]", part) for index, part in enumerate(value)]


class _Curtain:
    """A wrapper of a source that returns only the signals that the method declared in `needs()`."""

    def __init__(self, base: Teacher, signals: Iterable[Signal]) -> None:
        self.base = base
        self.name = base.name
        self.modalities = base.modalities
        self.spec = base.spec
        self.signals = frozenset(signals)

    def select(self, signals: Iterable[Signal]) -> "_Curtain":
        return _Curtain(self.base.select(signals), signals)

    def sees(self, batch: Batch) -> Batch:
        return self.base.sees(batch)

    def tail(self, tap: str) -> Callable[[Cut], Outputs]:
        if Signal.cut(tap) not in self.signals:
            raise SignalError(f"the cut at {tap!r} of {self.name!r} is continued, but needs() does not name it")
        return self.base.tail(tap)

    def __call__(self, batch: Batch) -> Outputs:
        outputs = self.base(batch)
        return replace(
            outputs,
            logits=outputs.logits if Signal.LOGITS in self.signals else None,
            embedding=outputs.embedding if Signal.EMBEDDING in self.signals else None,
            features={tap: value for tap, value in outputs.features.items() if Signal.feature(tap) in self.signals},
            cuts={tap: cut for tap, cut in outputs.cuts.items() if Signal.cut(tap) in self.signals},
        )


def _needs_is_true(contract: Contract) -> None:
    run = Rehearsal(contract)
    needs = run.job.method.needs()
    unknown = sorted(set(needs) - {STUDENT, *run.teachers})
    assert not unknown, f"needs() names {unknown}; the networks are {sorted({STUDENT, *run.teachers})}"
    batch = run.batch()
    whole = run.terms(batch)
    student = _Curtain(run.job.student, needs.get(STUDENT, {Signal.LOGITS}))
    teachers = {name: _Curtain(source, needs[name]) for name, source in run.job.teachers.items() if name in needs}
    torch.manual_seed(0)
    step = run.job.method(batch, student, teachers, run.progress)
    hidden = {name: term.reduced(batch.total_rows) * term.weight for name, term in step.terms.items()}
    assert set(hidden) == set(whole), f"With only the outputs in needs(), the terms are {sorted(hidden)}"
    for name, value in whole.items():
        assert torch.equal(value, hidden[name]), f"With only the outputs in needs(), the term {name!r} differs"


def _absent_unread(contract: Contract) -> None:
    weights = []
    for fill in (torch.nan, 3.0):
        run = Rehearsal(contract, with_absent(contract.dataset, fill))
        rows = run.rows()
        residue = rows % (len(contract.dataset.inputs) + 2)
        # A mixed batch; one without the student's modality; one with it, in which other modalities are missing.
        steps = [rows, rows[residue == 0], rows[(residue == 1) | (residue == 2)]]
        logs = [run.step(part, number) for number, part in enumerate(steps) if len(part)]
        bad = [name for each in logs for name, value in each.items() if not bool(value.isfinite().all())]
        assert not bad, f"Absent values reached {bad}, which are NaN or Inf"
        weights.append(run.weights())
    same_tensors(*weights, exact=True, what="The values in absent rows change")


def _labels_optional(contract: Contract) -> None:
    hidden = [Rehearsal(contract, with_labels_hidden(contract.dataset, shift)) for shift in (0, 1)]
    missing = Rehearsal(contract, with_targets_missing(contract.dataset))
    for run in (*hidden, missing):
        logs = [run.step(run.rows(number), number) for number in range(2)]
        bad = [name for each in logs for name, value in each.items() if not bool(value.isfinite().all())]
        assert not bad, f"With rows that have no label, {bad} are NaN or Inf"
    if contract.trains != "all":
        # Teachers that train may use the labels that are hidden from the student.
        pairs = (hidden[0].weights(), hidden[1].weights())
        same_tensors(*pairs, exact=True, what="A label that is hidden from the student changes")
        pairs = (hidden[0].weights(), missing.weights())
        same_tensors(*pairs, what="A row without target, unlike a row with a hidden label, changes")


def _parts_are_whole(contract: Contract) -> None:
    whole = Rehearsal(contract)
    if whole.job.method.batch_relational:
        try:
            Rehearsal(contract, micro_batches=2)
        except SettingError:
            return
        raise AssertionError("It is batch_relational, but a stage with micro-batches raised no error")
    parts = Rehearsal(contract, micro_batches=3)
    for number in range(3):
        of_whole, of_parts = whole.step(whole.rows(number), number), parts.step(parts.rows(number), number)
        same_tensors(_terms_of(of_whole), _terms_of(of_parts), what="Computing in micro-batches changes the term")
    same_tensors(whole.weights(), parts.weights(), what="Computing in micro-batches (is it batch_relational?) changes")


def _terms_of(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in logs.items() if name.startswith(("raw/", "weighted/"))}


def _forward_moves_nothing(contract: Contract) -> None:
    run = Rehearsal(contract)
    before = {name: value.clone() for name, value in run.job.method.state_dict().items()}
    first = run.terms(run.batch())
    run.terms(run.batch(run.rows(1)))
    again = run.terms(run.batch())
    same_tensors(before, dict(run.job.method.state_dict()), exact=True, what="A forward pass changes the state")
    same_tensors(first, again, exact=True, what="A forward pass over other rows changes the term")


def _any_number_of_teachers(contract: Contract) -> None:
    for number in contract.numbers:
        run = Rehearsal(contract, teachers=number)
        logs = run.step(run.rows())
        assert bool(logs["loss"].isfinite()), f"With {number} teachers the loss is {logs['loss']}"
        teachers = {name: Live(name, network) for name, network in run.teachers.items()}
        for name, teacher in run.job.method.next_teachers(teachers).items():
            kind = type(teacher).__name__
            assert isinstance(teacher, Teacher), f"next_teachers() returns {name!r} of type {kind}, not a Teacher"
            logits = teacher.select({Signal.LOGITS})(run.batch()).need(Signal.LOGITS)
            assert logits.shape[0] == ROWS, f"Logits of {name!r} have shape {tuple(logits.shape)} for {ROWS} rows"


def _order_is_free(contract: Contract) -> None:
    run = Rehearsal(contract)
    rows = run.rows()
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    same_tensors(run.terms(run.batch(rows)), run.terms(run.batch(mixed)), what="Another order of rows changes the term")
    gradients = [dict(enumerate(run.gradients(run.batch(each)))) for each in (rows, mixed)]
    same_tensors(*gradients, what="Another order of rows changes the gradient of parameter")


def _state_comes_back(contract: Contract) -> None:
    run, fresh = Rehearsal(contract), Rehearsal(contract, seed=1)
    for number in range(3):
        run.step(run.rows(number), number)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "method.safetensors"
        state = run.job.method.state_dict()
        save_file({name: value.contiguous().clone() for name, value in state.items()}, file)
        fresh.job.method.load_state_dict(load_file(file))
    for name, network in run.plan.members.items():
        fresh.plan.members[name].load_state_dict(network.state_dict())
    batch = run.batch()
    same_tensors(run.terms(batch), fresh.terms(batch), exact=True, what="Saving and loading its state changes the term")


def _validates_its_parts(contract: Contract) -> None:
    run = Rehearsal(contract)
    values = run.validated()
    wanted = set(run.job.method.parts()) or {STUDENT}
    assert wanted <= set(values), f"validate() returns {sorted(values)}; wanted a value for {sorted(wanted)}"
    for name, value in values.items():
        # Other values, such as those of a teacher, may be of a part of the rows.
        assert value.shape == (ROWS,) or (value.ndim == 1 and name not in wanted), (
            f"validate() returns {tuple(value.shape)} for {name!r}; wanted one number per row"
        )
        assert bool(value.isfinite().all()), f"validate() returns NaN or Inf for {name!r}"


def _banked_is_live(contract: Contract) -> None:
    for dataset in (contract.dataset, with_absent(contract.dataset, torch.nan), with_views(contract.dataset)):
        # Enough epochs to make a bank worthwhile for every frozen source.
        live, banked = (Rehearsal(contract, dataset, source=source, epochs=9) for source in ("live", "auto"))
        with tempfile.TemporaryDirectory() as folder:
            banked.read_banks(Path(folder))
            others = [choice.text() for choice in banked.job.choices if not choice.banked and choice.reason != TRAINS]
            assert contract.given is not None or not others, f"Toy networks can be banked, but were not: {others}"
            same_tensors(
                live.terms(live.batch()), banked.terms(banked.batch()), what="Reading from banks changes the term"
            )
            for number in range(3):
                live.step(live.rows(number), number)
                banked.step(banked.rows(number), number)
            same_tensors(live.weights(), banked.weights(), what="Reading from banks changes")
            validated = [run.validated() for run in (live, banked)]
            same_tensors(*validated, what="Reading from banks changes the validation value of")


CLAUSES: Mapping[str, Callable[[Contract], None]] = {
    "the loss is finite and falls": _loss_falls,
    "what does not train stays as it is, without gradient, in eval mode": _frozen_stay,
    "a method owns neither student nor teachers": _owns_nothing_else,
    "needs() names every signal that is read": _needs_is_true,
    "an absent modality is never read": _absent_unread,
    "rows may have no label": _labels_optional,
    "micro-batches are the batch": _parts_are_whole,
    "state moves in after_step alone": _forward_moves_nothing,
    "it takes one teacher and three, or refuses": _any_number_of_teachers,
    "of several teachers, each takes part, and only in rows that it can read": several_teachers,
    "the order of rows does not matter": _order_is_free,
    "its state comes back from a file": _state_comes_back,
    "it judges what is selected": _validates_its_parts,
    "what a bank gives is what a live source gives": _banked_is_live,
}
"""Each clause as a sentence, with the function that checks it."""

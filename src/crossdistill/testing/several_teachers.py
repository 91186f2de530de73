"""The clause of the contract about several teachers, where rows lack any of three modalities."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.data.row_source import tensors_in_memory
from crossdistill.errors import ApplicabilityError
from crossdistill.method import STUDENT
from crossdistill.network import Network
from crossdistill.testing.agreement import same_tensors
from crossdistill.testing.rehearsal import Contract, Rehearsal
from crossdistill.testing.toy import toy_models, toy_network

MANY = 72
"""Rows of a batch that has every combination of present modalities several times."""


def several_teachers(contract: Contract) -> None:
    """Check a method with several teachers on rows of every combination of present modalities, most without a label.

    The toy networks are a teacher of all modalities, which reads rows that have any of them, and three that read a part
    of them. Networks of one's own are used as they are. A method that accepts one teacher at most, or uses none, is
    left out.

    Raises:
        AssertionError: a step is not finite, reads an absent value, ignores a teacher, or differs in parts or banks.
    """
    contract = replace(contract, given=contract.given or _four(contract.dataset))
    number = len(contract.given or {}) - 1
    try:
        contract.build(number)
    except ApplicabilityError:
        return
    run = Rehearsal(contract, every_absence(contract.dataset), teachers=number, source="live")
    teachers = set(run.job.method.needs()) - {STUDENT}
    if number < 2 or not teachers:
        return
    assert teachers == set(run.teachers), f"needs() leaves out {sorted(set(run.teachers) - teachers)}"
    _takes_part(run)
    _is_left_out(run)
    _in_banks(contract, number, run)
    _unread(contract, number, parts=not run.job.method.batch_relational)


def every_absence(dataset: Dataset, fill: float = torch.nan) -> Dataset:
    """The same data with every combination of present modalities, none included, and a label in every fifth row.

    Absent values are `fill`; bit i of the row's number says whether modality i is present.
    """
    number = torch.arange(len(dataset))
    present = {name: (number >> i) % 2 == 1 for i, name in enumerate(dataset.inputs)}
    inputs = {name: rows.clone() for name, rows in tensors_in_memory(dataset.inputs, "every_absence").items()}
    for name, rows in inputs.items():
        rows[~present[name]] = fill
    return replace(dataset, inputs=inputs, present=present, labelled=number % 5 == 0)


def _four(dataset: Dataset) -> Mapping[str, Network]:
    members = toy_models(dataset, 3)
    names = list(dataset.inputs)
    shapes = {name: tuple(rows.shape[1:]) for name, rows in dataset.inputs.items()}
    pair = toy_network(list(dict.fromkeys([names[0], names[-1]])), shapes=shapes, classes=len(dataset.classes), seed=9)
    members["teacher-0"].needs = "any"
    return {**members, "teacher-3": pair}


def _takes_part(run: Rehearsal) -> None:
    """Every teacher changes the loss, and everything that trains gets a gradient."""
    batch = run.batch(run.dataset.splits["train"][:MANY])
    before = _sound(run, batch, "rows of every combination of modalities")
    for name, network in run.teachers.items():
        assert _changes(run, batch, before, network), f"{name!r} does not change any term"
    trained = {name: network for name, network in run.plan.members.items() if name in run.job.trained}
    for name, module in {**trained, **run.job.method.parts()}.items():
        gradients = torch.autograd.grad(run.loss(batch), list(module.parameters()), allow_unused=True)
        gets = any(bool(gradient.any()) for gradient in gradients if gradient is not None)
        assert gets, f"{name!r} trains, but gets no gradient"


def _changes(run: Rehearsal, batch: Batch, before: Mapping[str, Tensor], network: Network) -> bool:
    """Whether a teacher's weights change a term, with some weights of the method: a gate may select others first."""
    with _moved(network):
        after = run.terms(batch)
    if any(not torch.equal(before[term], after[term]) for term in before):
        return True
    for seed in range(1, 9):
        with _moved(run.job.method, seed):
            before = run.terms(batch)
            with _moved(network):
                after = run.terms(batch)
        if any(not torch.equal(before[term], after[term]) for term in before):
            return True
    return False


def _is_left_out(run: Rehearsal) -> None:
    """Rows without a teacher's modalities add nothing to its terms, and rows without any modality are no fault."""
    rows = run.dataset.splits["train"][:MANY]
    learner = run.plan.recipe.learner
    seen = {name: _seen(network, run, rows) for name, network in run.plan.members.items()}
    nothing = ~torch.stack(list(seen.values())).any(0)
    if nothing.any():
        _sound(run, run.batch(rows[nothing]), "rows that lack every modality")
    for name, network in run.teachers.items():
        without = rows[seen[learner] & ~seen[name]]
        if len(without) < max(2, run.job.method.least_rows):
            continue
        before = _sound(run, run.batch(without), f"rows that {name!r} cannot read")
        with _moved(network):
            after = run.terms(run.batch(without))
        same_tensors(before, after, exact=True, what=f"In rows that {name!r} cannot read, its weights change the term")
        named = {term: value.item() for term, value in before.items() if name in term and value.item() != 0}
        assert not named, f"Rows that {name!r} cannot read have {named}; wanted 0"
    with _strict(run.teachers.values()):
        seen = {name: _seen(network, run, rows) for name, network in run.plan.members.items()}
        alone = rows[seen[learner] & ~torch.stack([seen[name] for name in run.teachers]).any(0)]
        if len(alone) >= max(2, run.job.method.least_rows):
            batch = run.batch(alone)
            _sound(run, batch, "rows that no teacher can read")
            step = run.forward(batch)
            terms = {name: term.value.sum().item() for name, term in step.terms.items() if term.group == "distil"}
            # A term that names the student compares it with a proxy of its own.
            wrong = {name: value for name, value in terms.items() if value != 0 and STUDENT not in name}
            assert not wrong, f"Rows that no teacher can read have {wrong}; wanted 0"


def _in_banks(contract: Contract, number: int, live: Rehearsal) -> None:
    """What banks of several teachers give is what the teachers give."""
    banked = Rehearsal(contract, live.dataset, teachers=number, source="auto", epochs=9)
    with tempfile.TemporaryDirectory() as folder:
        banked.read_banks(Path(folder))
        pair = live.terms(live.batch()), banked.terms(banked.batch())
        same_tensors(*pair, what="With several teachers, reading from banks changes the term")


def _unread(contract: Contract, number: int, *, parts: bool) -> None:
    """Values in absent rows change nothing, nor do micro-batches, some of which have no row of a teacher."""
    whole = Rehearsal(contract, every_absence(contract.dataset), teachers=number)
    other = every_absence(contract.dataset, 3.0)
    others = {"the values in absent rows change": Rehearsal(contract, other, teachers=number)}
    if parts:
        others["micro-batches change"] = Rehearsal(contract, whole.dataset, teachers=number, micro_batches=3)
    for step in range(2):
        logs = whole.step(whole.rows(step), step)
        _finite(logs, "rows of every combination of modalities")
        for what, run in others.items():
            pair = [_raw(logs), _raw(run.step(run.rows(step), step))]
            same_tensors(*pair, what=f"With several teachers, {what} the term")
    for what, run in others.items():
        exact = run.job.stage.micro_batches == 1
        same_tensors(whole.weights(), run.weights(), exact=exact, what=f"With several teachers, {what}")


def _raw(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in logs.items() if name.startswith("raw/")}


def _seen(network: Network, run: Rehearsal, rows: Tensor) -> Tensor:
    """Which of these rows a network can read."""
    usable, _ = network.usable(run.dataset.batch(rows))
    seen = torch.zeros(len(rows), dtype=torch.bool)
    return ~seen if usable is None else seen.index_fill(0, usable, True)


@contextmanager
def _strict(networks: Iterable[Network]) -> Iterator[None]:
    """The networks, for a while, without rows that lack any of their modalities."""
    needs = [(network, network.needs) for network in networks]
    for network, _ in needs:
        network.needs = "all"
    try:
        yield
    finally:
        for network, need in needs:
            network.needs = need


@contextmanager
def _moved(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """The module with other weights, for a while."""
    weights = list(module.parameters())
    values = [weight.detach().clone() for weight in weights]
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn(weight.shape, generator=drawn))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)


def _sound(run: Rehearsal, batch: Batch, where: str) -> dict[str, Tensor]:
    """The terms of a batch, which are finite, as are their gradients."""
    terms = run.terms(batch)
    _finite(terms, where)
    loss = torch.stack([value.reshape(()) for value in terms.values()]).sum()
    if loss.requires_grad:
        parameters = run.training.parameters
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = {f"gradient {i}": gradient for i, gradient in enumerate(found) if gradient is not None}
        _finite(gradients, where)
    return terms


def _finite(values: Mapping[str, Tensor], where: str) -> None:
    bad = [name for name, value in values.items() if not bool(value.isfinite().all())]
    assert not bad, f"On {where}, {bad} are NaN or Inf"

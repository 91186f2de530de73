"""The plan of a recipe: its members, methods, teachers and keys, and the report of all faults before training."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossdistill import __version__
from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset, visible
from crossdistill.data.sampler import Order
from crossdistill.errors import CrossdistillError, RecipeError, nearest
from crossdistill.method import STUDENT, Method
from crossdistill.models.own_network import complete, draw, frozen_weights, watch
from crossdistill.nets.batch_statistics import batch_statistics
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.planning.preflight import (
    check_data,
    check_learner,
    check_lone_rows,
    check_settings,
    check_sources,
    check_tested,
    data_spec,
    moving_parts,
    rehearse,
)
from crossdistill.planning.sources import Choices, choices_key, decide, masked_base, unkeyed_views
from crossdistill.planning.stage_key import initial_key, views_key
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.run_folder.checkpoint import flatten
from crossdistill.runtime.code_key import CodeKey, code_key
from crossdistill.runtime.hashing import derived_seed, key_hash, tensor_hash
from crossdistill.runtime.tensor_file import load_weights
from crossdistill.stage import Stage
from crossdistill.teacher import Live, Shuffled, Teacher, TeacherBase

SCHEMA = 2
"""Version of the keys; increased when equal keys would stand for different numbers."""


@dataclass(frozen=True, slots=True)
class Job:
    """One stage, ready to run: its method, members and data, and the key of its shared result."""

    index: int
    stage: Stage
    method: Method
    student: Teacher
    teachers: Mapping[str, Teacher]
    trained: Mapping[str, tuple[Network, tuple[str, ...]]]
    """The trained members, each with the taps whose layers train (empty: the whole network)."""
    dataset: Dataset
    order: Order
    key: str
    groups: tuple[str, ...]
    """Groups of the terms of a step, in order."""
    initial: Mapping[str, Tensor] | None = None
    """The learner's weights at the start of the run, if the stage starts from them again."""
    choices: Choices = ()
    """The banked and live outputs, with reasons."""
    unkeyed: tuple[str, ...] = ()
    """Reasons why the key is incomplete; if there are any, other runs do not reuse the result."""
    reads: frozenset[str] | None = None
    """Modalities that live sources read; None: all modalities."""

    @property
    def folder(self) -> str:
        """Name of the stage's folder under `stages/`."""
        return folder_name(self.index, self.stage)

    def batch(self, rows: Tensor, epoch: int, total_rows: int | None = None) -> Batch:
        """Training rows in their views of an epoch, with the modalities that live sources read."""
        view = self.dataset.views(rows, self.order.seed, epoch)
        return self.dataset.batch(rows, total_rows, self.reads, view)

    def modules(self) -> dict[str, nn.Module]:
        """All modules with changing state, by their names in checkpoints."""
        found: dict[str, nn.Module] = {name: network for name, (network, _) in self.trained.items()}
        return {**found, "method": self.method} if any(True for _ in self.method.state_dict()) else found


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole recipe, ready to run."""

    recipe: Recipe
    dataset: Dataset
    members: Mapping[str, Network]
    jobs: tuple[Job, ...]
    teachers: Mapping[str, Teacher]
    """All teachers of all stages, masked ones included, for the final table."""

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each member."""
        return {name: sum(p.numel() for p in network.parameters()) for name, network in self.members.items()}


def folder_name(index: int, stage: Stage) -> str:
    """Name of a stage's folder under `stages/`."""
    return f"{index:02d}-{stage.name}"


def prepare(
    recipe: Recipe, dataset: Dataset, device: torch.device, chosen: Mapping[str, Choices] | None = None, ranks: int = 1
) -> Plan:
    """Build all members and methods of a recipe on a device, and check that they fit.

    `chosen` are the sources that a resumed run decided on at its start, by stage folder; `ranks` is the number of
    processes that share each batch.

    Raises:
        RecipeError: there are faults; lists those of all stages.
    """
    dataset, faults = check_data(dataset)
    members: dict[str, Network] = {}
    for name, given in {recipe.learner: recipe.student, **recipe.teachers}.items():
        try:
            members[name] = _member(name, given, dataset, recipe.seed).to(device)
            if recipe.channels_last:
                # PyTorch's annotations lack this form of `to`.
                members[name].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        except CrossdistillError as error:
            faults += _faults("student" if name == recipe.learner else f"teachers.{name}", error)
    if len(members) <= len(recipe.teachers):
        raise RecipeError(recipe.name, faults)
    faults += check_tested(members[recipe.learner], dataset)
    planner = _Planner(recipe, dataset, members, device, chosen or {}, ranks)
    jobs = []
    for index, stage in enumerate(recipe.stages):
        try:
            jobs.append(planner.job(index, stage))
        except CrossdistillError as error:
            faults += _faults(f"stages.{stage.name}", error)
            if stage.method.makes_next_teachers:
                break  # later stages need the teachers that this stage makes
    if faults:
        raise RecipeError(recipe.name, faults)
    return Plan(recipe, dataset, members, tuple(jobs), planner.known)


def _member(name: str, given: NetworkConfig | Network, dataset: Dataset, seed: int) -> Network:
    if isinstance(given, Network):
        network = given if given.factory is None or given.is_made else draw(given, seed, name)
        complete(network, dataset.example(), derived_seed("member", seed, name))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("member", seed, name))
            network = given.build(len(dataset.classes))
        if given.weights is not None:
            load_weights(network.module, given.weights, network.name)
    missing = [modality for modality in network.reads if modality not in dataset.inputs]
    if missing:
        who = f"{network.name} reads"
        known = f"which data {dataset.name!r} does not have"
        raise RecipeError(name, [f"{who} {m!r}, {known}; {nearest(m, dataset.inputs)}" for m in missing])
    device = next(iter(network.parameters()), torch.zeros(0)).device
    network.probe(dataset.example().to(device))
    network.frozen = frozen_weights(network.module)
    if network.has_own_code():
        train = dataset.splits["train"]
        watch(
            network, (dataset.batch(rows, only=network.reads).to(device) for rows in (train[:2], train[-2:], train[:3]))
        )
    return network


def _faults(where: str, error: CrossdistillError) -> list[str]:
    return [f"{where}: {fault}" for fault in (error.faults if isinstance(error, RecipeError) else [str(error)])]


class _Planner:
    """Builds stages one after another and holds the networks and teachers so far."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        members: Mapping[str, Network],
        device: torch.device,
        chosen: Mapping[str, Choices],
        ranks: int,
    ) -> None:
        self.recipe = recipe
        self.ranks = ranks
        self.chosen = chosen
        self.dataset = dataset
        self.members = members
        self.device = device
        self.current: dict[str, Teacher] = {name: Live(name, members[name]) for name in recipe.teachers}
        self.known: dict[str, Teacher] = dict(self.current)
        self.initial = {name: initial_key(recipe, name, members[name]) for name in members}
        self.provenance = dict(self.initial)
        self.unkeyed = {name: network.unkeyed() for name, network in members.items() if network.has_own_code()}

    def job(self, index: int, stage: Stage) -> Job:
        """Build the next stage, and keep its teachers for the following ones."""
        recipe = self.recipe
        learner = recipe.learner if stage.learner == STUDENT else stage.learner
        stage, teachers = self._settled(stage, self._teachers(stage, learner))
        trained = self._trained(stage, [name for name in teachers if name in self.members])
        labels_hidden = learner == recipe.learner
        dataset = self.dataset if labels_hidden else replace(self.dataset, labelled=None)
        spec = data_spec(dataset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("method", recipe.seed, stage.name))
            specs = {name: teacher.spec for name, teacher in teachers.items()}
            method = stage.method.build(_spec(self.members[learner]), specs, spec).to(self.device)
        signals = dict(method.needs())
        student = Live(
            learner, self.members[learner], signals.pop(STUDENT, {Signal.LOGITS}), trained=learner in trained
        )
        asked: dict[str, Teacher] = {}
        for name, wanted in signals.items():
            network = TeacherBase.of(teachers[name]).network
            asked[name] = (
                Live(name, network, wanted, trained=True)
                if name in trained and network is not None
                else teachers[name].select(wanted)
            )
        teaches = learner == recipe.learner and learner in trained and bool(asked)
        if recipe.control == "shuffled" and teaches:
            asked = {name: Shuffled(teacher, self._partners(), self._fetch) for name, teacher in asked.items()}
        moving = moving_parts(trained)
        order = self._order(stage, method, dataset, [*moving.values(), method])
        groups = self._checked(stage, method, student, asked, moving, dataset, order)
        if stage.fresh:
            self.provenance[learner] = self.initial[learner]
        choices = self.chosen.get(folder_name(index, stage))
        if choices is None:
            networks = [network for network, _ in trained.values()]
            choices = decide(stage, student, asked, method.needs(), dataset, order, recipe.bank, networks)
        code = code_key(method=type(method), settings=type(stage.method), data=type(recipe.data))
        key = self._key(stage, method, learner, trained, asked, teaches, choices, code, order)
        unkeyed = self._unkeyed({learner, *trained}, asked, code)
        next_teachers = dict(method.next_teachers(teachers)) if signals else teachers
        for name in {*trained, *(set(next_teachers) - set(teachers))}:
            self.provenance[name], self.unkeyed[name] = key_hash([key, name]), unkeyed
        self.known |= next_teachers
        self.current = next_teachers if set(next_teachers) != set(teachers) else self.current
        initial = flatten({learner: self.members[learner]}) if stage.fresh else None
        return Job(
            index, stage, method, student, asked, trained, dataset, order, key, groups, initial, choices, tuple(unkeyed)
        )

    def _settled(self, stage: Stage, teachers: dict[str, Teacher]) -> tuple[Stage, dict[str, Teacher]]:
        """The stage with its method's open choices made, and teachers with taps at the chosen layers."""
        found = {name: TeacherBase.of(teacher).network for name, teacher in teachers.items()}
        networks = {name: network for name, network in found.items() if network is not None}
        batch = self.dataset.example().to(self.device)
        method, layers = stage.method.settled(networks, batch)
        if method is stage.method:
            return stage, teachers
        shown = {name: Live(name, networks[name].showing(layers[name], batch)) for name in layers}
        return stage.model_copy(update={"method": method}), {**teachers, **shown}

    def _checked(
        self,
        stage: Stage,
        method: Method,
        student: Live,
        teachers: Mapping[str, Teacher],
        moving: Mapping[str, nn.Module],
        dataset: Dataset,
        order: Order,
    ) -> tuple[str, ...]:
        """The groups of the method's terms, after all checks of the stage and a trial step."""
        moving = {**moving, "method": method}
        faults = check_settings(stage, method, moving, teachers, self.device, self.ranks)
        faults += check_learner(stage, method, student, dataset)
        batch = dataset.example().to(self.device)
        train = [self.members[name] for name in moving if name in self.members]
        faults += check_sources(train, student, teachers, dataset, batch)
        own = self.recipe.learner
        if own in moving and student.name != own and self.dataset.labelled is not None:
            faults.append(
                f"{own!r} trains here while {student.name!r} learns: teachers may use the labels that are hidden from "
                f"{own!r}; make it the learner, or leave it out of `trains`"
            )
        if faults:
            raise RecipeError(self.recipe.name, faults)
        for network in self.members.values():
            network.eval()
        groups = rehearse(stage, method, batch, student, teachers)
        check_lone_rows(method, moving, order, stage.epochs, batch, student, teachers, dataset)
        return groups

    def _trained(self, stage: Stage, teachers: Sequence[str]) -> dict[str, tuple[Network, tuple[str, ...]]]:
        found: dict[str, tuple[Network, tuple[str, ...]]] = {}
        for part in stage.trained_with(teachers):
            name, _, tap = part.partition(":")
            name = self.recipe.learner if name == STUDENT else name
            network = self.members[name]
            if tap:
                _spec(network).feature(tap, f"member {name!r}")
            found[name] = (network, (*found[name][1], tap) if name in found else (tap,))
        # If a member is also named as a whole, all of it trains.
        return {name: (network, () if "" in taps else taps) for name, (network, taps) in found.items()}

    def _teachers(self, stage: Stage, learner: str) -> dict[str, Teacher]:
        if stage.teachers is None:
            return {name: teacher for name, teacher in self.current.items() if name != learner}
        for name in stage.teachers:
            if name not in self.known:
                raise RecipeError(
                    self.recipe.name, [f"no teacher is called {name!r} here; {nearest(name, self.known)}"]
                )
        return {name: self.known[name] for name in stage.teachers}

    def _order(self, stage: Stage, method: Method, dataset: Dataset, trained: Collection[nn.Module]) -> Order:
        train = dataset.splits["train"]
        rows = train
        if method.labelled_only:
            rows = train[visible(dataset)[train]]
            if len(rows) == 0:
                raise RecipeError(self.recipe.name, ["supervised training needs labelled rows, and there are none"])
        joins = any(map(batch_statistics, trained))
        return Order(rows, len(train), stage.batch_size, self.recipe.seed, stage.steps, joins)

    def _partners(self) -> Tensor:
        """Each training row's partner under the control's permutation; other rows are their own partners."""
        train = self.dataset.splits["train"]
        source = torch.Generator().manual_seed(derived_seed("shuffled", self.recipe.seed))
        partners = torch.arange(len(self.dataset))
        partners[train] = train[torch.randperm(len(train), generator=source)]
        return partners

    def _fetch(self, ids: Tensor, view: Tensor | None) -> Batch:
        return self.dataset.batch(ids.cpu(), view=None if view is None else view.cpu())

    def _key(
        self,
        stage: Stage,
        method: Method,
        learner: str,
        trained: Mapping[str, tuple[Network, tuple[str, ...]]],
        teachers: Mapping[str, Teacher],
        teaches: bool,
        choices: Choices,
        code: CodeKey,
        order: Order,
    ) -> str:
        """A hash of everything that a stage's numbers depend on: equal keys mean bit-identical results."""
        # New options at their neutral defaults must not change keys; a changed default needs a new SCHEMA.
        omitted = {"source", "learner", "trains", "teachers"}
        settings = stage.model_dump(mode="json", exclude=omitted, exclude_defaults=True)
        settings["method"] = {"name": stage.method.name, **settings.get("method", {})}
        sees_labels = learner == self.recipe.learner and self.dataset.labelled is not None
        hidden = tensor_hash(self.dataset.labelled) if sees_labels and self.dataset.labelled is not None else None
        # If roles are interchangeable, the student matters only for hidden labels and for selection.
        role = None if method.symmetric and stage.select == "last" else learner
        sources = {name: self._source(name, teacher) for name, teacher in teachers.items()}
        provenance = {name: self.provenance[name] for name in {learner, *trained}} | sources
        # Only for banked outputs: stages with banks and live stages differ in the last bits.
        banked, views = choices_key(choices), views_key(self.dataset)
        return key_hash(
            {
                "schema": SCHEMA,
                "versions": [__version__, torch.__version__, self.device.type],
                "data": self.dataset.fingerprint,
                "seed": self.recipe.seed,
                "stage": settings,
                "role": role,
                "hidden": [learner, hidden] if hidden else None,
                "trained": sorted(
                    f"{name}:{tap}" for name, (_, taps) in trained.items() for tap in sorted(taps) or [""]
                ),
                "cast": provenance,
                "layout": "channels last" if self.recipe.channels_last else None,
                "control": self.recipe.control if teaches else None,
                **({"banked": banked} if banked else {}),
                **({"views": views} if views else {}),
                # For methods or data in the user's code; code of this package changes with the version.
                **({"code": code.text()} if code.own else {}),
                **({"joined": True} if order.joined else {}),
            }
        )

    def _unkeyed(self, members: Collection[str], teachers: Mapping[str, Teacher], code: CodeKey) -> list[str]:
        """Possible dependencies of a stage's numbers that are not in its key."""
        bases = {base.name for base in map(masked_base, teachers.values()) if base is not None}
        own = {name: self.unkeyed.get(name, []) for name in sorted({*members, *teachers, *bases})}
        networks = [f"{name}: {reason}" for name, reasons in own.items() for reason in reasons]
        return list(dict.fromkeys([*networks, *code.faults.values(), *unkeyed_views(self.dataset)]))

    def _source(self, name: str, teacher: Teacher) -> str:
        """The source key of a teacher; for a masked one with that of its base, which may train again later."""
        own, base = self.provenance[name], masked_base(teacher)
        return own if base is None else key_hash([own, self.provenance[base.name]])


def _spec(network: Network) -> OutputSpec:
    assert network.spec is not None
    return network.spec

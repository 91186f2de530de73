"""The plan of a recipe: its members, methods, teachers and keys, and the report of all faults before training.

`prepare` builds the networks of a recipe and then one `Job` for each stage, in order, since a stage may make teachers
for the following ones. A *member* is a network of the recipe, by name. A *teacher* is a source of outputs, by name: a
member, or what an earlier stage made of one (a masked member). The *learner* of a stage is the member that it distils
into or trains from labels, for most stages the recipe's student.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crossdistill.backends.names import backend_of
from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset, rows_with_label
from crossdistill.data.row_source import row_lengths
from crossdistill.data.sampler import Order
from crossdistill.errors import CrossdistillError, RecipeError, nearest
from crossdistill.method import STUDENT, Method
from crossdistill.nets.batch_statistics import batch_statistics
from crossdistill.network import Network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.planning.merged_start import check_merge
from crossdistill.planning.networks import build_members
from crossdistill.planning.preflight import (
    Trained,
    check_data,
    check_learner,
    check_lone_rows,
    check_settings,
    check_sources,
    training_parts,
    trial_step,
)
from crossdistill.planning.sources import Choices, decide
from crossdistill.planning.stage_key import StageKeys
from crossdistill.planning.task_checks import built_for_task, check_tested
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.run_folder.checkpoint import flatten
from crossdistill.runtime.code_key import code_key
from crossdistill.runtime.hashing import derived_seed
from crossdistill.stage import Stage
from crossdistill.teacher import Live, Shuffled, Teacher, TeacherBase


@dataclass(frozen=True, slots=True)
class Job:
    """One stage, ready to run: its method, members and data, and the key of its shared result."""

    index: int
    stage: Stage
    method: Method
    student: Teacher
    """The learner as the method calls it, live and with the outputs that the method reads."""
    teachers: Mapping[str, Teacher]
    """The teachers that the method reads, each with the outputs that it reads."""
    trained: Trained
    dataset: Dataset
    order: Order
    """The rows of each step."""
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
        modules: dict[str, nn.Module] = {name: network for name, (network, _) in self.trained.items()}
        has_state = any(True for _ in self.method.state_dict())
        return {**modules, "method": self.method} if has_state else modules


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole recipe, ready to run."""

    recipe: Recipe
    dataset: Dataset
    members: Mapping[str, Network]
    jobs: tuple[Job, ...]
    teachers: Mapping[str, Teacher]
    """All teachers of all stages, masked ones included, for the final table."""
    notes: tuple[str, ...] = ()
    """Lines that say what was decided for networks of other libraries, and which stages are left out."""

    @property
    def noted(self) -> frozenset[str]:
        """Members that a note describes: networks of other libraries."""
        given = {self.recipe.learner: self.recipe.student, **self.recipe.teachers}
        return frozenset(
            name for name, one in given.items() if isinstance(one, NetworkConfig) and backend_of(one.model) is not None
        )

    def trains_logits(self, name: str) -> bool:
        """Whether the logits of a member have a meaning: those of one that trains only by its features have none."""
        return _trains_logits(self.jobs, name)

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each member."""
        return {name: sum(p.numel() for p in network.parameters()) for name, network in self.members.items()}


def _trains_logits(jobs: Iterable[Job], name: str) -> bool:
    own = [job.method.trains_logits for job in jobs if name in job.trained]
    return any(own) or not own


def folder_name(index: int, stage: Stage) -> str:
    """Name of a stage's folder under `stages/`."""
    return f"{index:02d}-{stage.name}"


def prepare(
    recipe: Recipe, dataset: Dataset, device: torch.device, choices: Mapping[str, Choices] | None = None, ranks: int = 1
) -> Plan:
    """Build all members and methods of a recipe on a device, and check that they fit.

    `choices` are the banked and live outputs that a resumed run decided on at its start, by stage folder; `ranks` is
    the number of processes that share each batch.

    Raises:
        RecipeError: there are faults; lists those of all stages.
    """
    dataset, faults = check_data(dataset)
    built = build_members(recipe, dataset, device)
    members, dataset = built.networks, built.dataset
    faults += built.faults
    if len(members) <= len(recipe.teachers):
        raise RecipeError(recipe.name, faults)  # a network is missing, so no stage can be checked
    planner = _Planner(recipe, dataset, members, device, choices or {}, ranks)
    jobs, notes = [], list(built.notes)
    for index, stage in enumerate(recipe.stages):
        if _is_frozen(stage, recipe, members):
            notes.append(f"{stage.name}: left out, since every weight of {stage.learner!r} is frozen")
            continue
        try:
            jobs.append(planner.job(index, stage))
        except CrossdistillError as error:
            faults += _faults(f"stages.{stage.name}", error)
            if stage.method.makes_next_teachers:
                break  # later stages need the teachers that this stage makes
    # Features learn, and are judged, without labels too; a stage with faults does not say which of both it trains.
    known = not faults or dataset.task != "none" or any(recipe.learner in job.trained for job in jobs)
    if known and _trains_logits(jobs, recipe.learner):
        faults += check_tested(members[recipe.learner], dataset, recipe.metrics)
    if faults:
        raise RecipeError(recipe.name, faults)
    return Plan(recipe, dataset, members, tuple(jobs), planner.known, tuple(notes))


def _is_frozen(stage: Stage, recipe: Recipe, members: Mapping[str, Network]) -> bool:
    """Whether a stage would only train a teacher by name whose weights are all frozen."""
    given = recipe.teachers.get(stage.learner)
    alone = stage.method.name == "supervised" and stage.trained_with(()) == (stage.learner,)
    if not isinstance(given, NetworkConfig) or not alone:
        return False
    return not any(one.requires_grad for one in members[stage.learner].parameters())


def _faults(where: str, error: CrossdistillError) -> list[str]:
    return [f"{where}: {fault}" for fault in (error.faults if isinstance(error, RecipeError) else [str(error)])]


class _Planner:
    """Builds stages one after another.

    `known` are all teachers so far; `current` are those of the next stage, unless it names its teachers.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        members: Mapping[str, Network],
        device: torch.device,
        choices: Mapping[str, Choices],
        ranks: int,
    ) -> None:
        self.recipe = recipe
        self.ranks = ranks
        self.choices = choices
        self.dataset = dataset
        self.members = members
        self.device = device
        self.current: dict[str, Teacher] = {name: Live(name, members[name]) for name in recipe.teachers}
        self.known: dict[str, Teacher] = dict(self.current)
        self.keys = StageKeys(recipe, dataset, members, device)

    def job(self, index: int, stage: Stage) -> Job:
        """Build the next stage, and keep its teachers for the following ones."""
        learner = self.recipe.learner if stage.learner == STUDENT else stage.learner
        stage, teachers = self._with_chosen_layers(stage, self._teachers(stage, learner))
        trained = self._trained(stage, [name for name in teachers if name in self.members])
        # Labels are hidden from the recipe's student only.
        dataset = self.dataset if learner == self.recipe.learner else replace(self.dataset, labelled=None)
        method = self._method(stage, learner, teachers, dataset)
        needs = dict(method.needs())
        network = self.members[learner]
        student = Live(learner, network, needs.pop(STUDENT, {Signal.LOGITS}), trained=learner in trained)
        sources = {name: _source(name, teachers[name], signals, name in trained) for name, signals in needs.items()}
        # The control applies where the recipe's student learns from teachers.
        distils = learner == self.recipe.learner and learner in trained and bool(sources)
        control = self.recipe.control if distils else None
        if control == "shuffled":
            sources = {name: Shuffled(source, self._partners(), self._fetch) for name, source in sources.items()}
        training = training_parts(trained)
        order = self._order(stage, method, dataset, [*training.values(), method])
        groups = self._check_stage(stage, method, student, sources, training, dataset, order)
        choices = self.choices.get(folder_name(index, stage))
        if choices is None:
            networks = [network for network, _ in trained.values()]
            choices = decide(stage, student, sources, method.needs(), dataset, order, self.recipe.bank, networks)
        if stage.fresh:
            self.keys.restart(learner)
        code = code_key(method=type(method), settings=type(stage.method), data=type(self.recipe.data))
        key = self.keys.stage(stage, method, learner, trained, sources, control, choices, code, order)
        unkeyed = self.keys.unkeyed({*stage.members, learner, *trained}, sources, code)
        next_teachers = dict(method.next_teachers(teachers)) if needs else teachers
        self.keys.advance({*trained, *(next_teachers.keys() - teachers.keys())}, key, unkeyed)
        self.known |= next_teachers
        if next_teachers.keys() != teachers.keys():
            self.current = next_teachers
        return Job(
            index=index,
            stage=stage,
            method=method,
            student=student,
            teachers=sources,
            trained=trained,
            dataset=dataset,
            order=order,
            key=key,
            groups=groups,
            initial=flatten({learner: network}) if stage.fresh else None,
            choices=choices,
            unkeyed=tuple(unkeyed),
        )

    def _teachers(self, stage: Stage, learner: str) -> dict[str, Teacher]:
        if stage.teachers is None:
            return {name: teacher for name, teacher in self.current.items() if name != learner}
        for name in stage.teachers:
            if name not in self.known:
                raise RecipeError(
                    self.recipe.name, [f"no teacher is called {name!r} here; {nearest(name, self.known)}"]
                )
        return {name: self.known[name] for name in stage.teachers}

    def _with_chosen_layers(self, stage: Stage, teachers: dict[str, Teacher]) -> tuple[Stage, dict[str, Teacher]]:
        """The stage with the layers that its method chooses by itself, and the teachers with taps at these layers."""
        candidates = {name: TeacherBase.of(teacher).network for name, teacher in teachers.items()}
        networks = {name: network for name, network in candidates.items() if network is not None}
        batch = self.dataset.example().to(self.device)
        method, layers = stage.method.choose_layers(networks, batch)
        if method is stage.method:
            return stage, teachers
        tapped = {name: Live(name, networks[name].showing(layers[name], batch)) for name in layers}
        return stage.model_copy(update={"method": method}), {**teachers, **tapped}

    def _trained(self, stage: Stage, teachers: Sequence[str]) -> Trained:
        trained: dict[str, tuple[Network, tuple[str, ...]]] = {}
        for part in stage.trained_with(teachers):
            name, _, tap = part.partition(":")
            name = self.recipe.learner if name == STUDENT else name
            network = self.members[name]
            if tap:
                _spec(network).feature(tap, f"member {name!r}")
            trained[name] = (network, (*trained[name][1], tap) if name in trained else (tap,))
        # If a member is also named as a whole, all of it trains.
        return {name: (network, () if "" in taps else taps) for name, (network, taps) in trained.items()}

    def _method(self, stage: Stage, learner: str, teachers: Mapping[str, Teacher], dataset: Dataset) -> Method:
        """The stage's method with its own modules, whose initial weights depend on the seed and the stage's name."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("method", self.recipe.seed, stage.name))
            specs = {name: teacher.spec for name, teacher in teachers.items()}
            return built_for_task(stage, _spec(self.members[learner]), specs, dataset).to(self.device)

    def _check_stage(
        self,
        stage: Stage,
        method: Method,
        student: Live,
        teachers: Mapping[str, Teacher],
        training: Mapping[str, nn.Module],
        dataset: Dataset,
        order: Order,
    ) -> tuple[str, ...]:
        """The groups of the method's terms, after all checks of the stage and a trial step.

        Raises:
            RecipeError: the stage has faults; lists all of them.
            CrossdistillError: the trial step fails.
        """
        training = {**training, "method": method}
        faults = check_settings(stage, method, training, teachers, self.device, self.ranks)
        faults += check_learner(stage, method, student, dataset)
        faults += check_merge(stage, self.recipe.learner, student.name, self.members)
        batch = dataset.example().to(self.device)
        train = [self.members[name] for name in training if name in self.members]
        faults += check_sources(train, student, teachers, dataset, batch)
        learner = self.recipe.learner
        if learner in training and student.name != learner and self.dataset.labelled is not None:
            faults.append(
                f"{learner!r} trains here while {student.name!r} learns: teachers may use the labels that are hidden "
                f"from {learner!r}; make it the learner, or leave it out of `trains`"
            )
        if faults:
            raise RecipeError(self.recipe.name, faults)
        for network in self.members.values():
            network.eval()
        groups = trial_step(stage, method, batch, student, teachers)
        check_lone_rows(method, training, order, stage.epochs, batch, student, teachers, dataset)
        return groups

    def _order(self, stage: Stage, method: Method, dataset: Dataset, trained: Collection[nn.Module]) -> Order:
        train = dataset.splits["train"]
        rows = train
        if method.labelled_only:
            rows = train[rows_with_label(dataset)[train]]
            if len(rows) == 0:
                raise RecipeError(
                    self.recipe.name,
                    [
                        f"{stage.method.name} trains on labelled rows, and none of the {len(train):,} training rows "
                        "has a label for the learner; give `targets` to some of them"
                    ],
                )
        joins = any(map(batch_statistics, trained))
        buckets = stage.length_buckets
        lengths = row_lengths(dataset.inputs, f"stage {stage.name!r}") if buckets else None
        mix = None
        if dataset.mix is not None and dataset.domain is not None:
            mix = dataset.mix.draw(dataset.domain, rows, stage.batch_size, f"stage {stage.name!r}")
        return Order(rows, len(train), stage.batch_size, self.recipe.seed, stage.steps, joins, buckets, lengths, mix)

    def _partners(self) -> Tensor:
        """Each training row's partner under the control's permutation; other rows are their own partners."""
        train = self.dataset.splits["train"]
        source = torch.Generator().manual_seed(derived_seed("shuffled", self.recipe.seed))
        partners = torch.arange(len(self.dataset))
        partners[train] = train[torch.randperm(len(train), generator=source)]
        return partners

    def _fetch(self, ids: Tensor, view: Tensor | None) -> Batch:
        return self.dataset.batch(ids.cpu(), view=None if view is None else view.cpu())


def _source(name: str, teacher: Teacher, signals: Iterable[Signal], trains: bool) -> Teacher:
    """A teacher with the outputs that the method reads; one that trains is called with gradient."""
    network = TeacherBase.of(teacher).network
    if trains and network is not None:
        return Live(name, network, signals, trained=True)
    return teacher.select(signals)


def _spec(network: Network) -> OutputSpec:
    assert network.spec is not None
    return network.spec

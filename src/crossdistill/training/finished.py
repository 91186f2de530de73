"""The networks of a finished run, with their final weights: its student, its teachers, and what its method fuses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from crossdistill.bank.fused import Fused, Fusion
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendered import rendered, renderings_of
from crossdistill.errors import RunError
from crossdistill.network import Network
from crossdistill.outputs import Signal
from crossdistill.planning.plan import Plan, prepare
from crossdistill.planning.sources import load_choices
from crossdistill.recipe import Recipe
from crossdistill.run_folder.checkpoint import OUTCOME, load_outcome
from crossdistill.run_folder.initial_weights import with_initial_weights
from crossdistill.runtime.distributed import Devices
from crossdistill.runtime.files import read_sealed
from crossdistill.student import load_student
from crossdistill.teacher import Live, TeacherBase

STUDENT, FUSED, TEACHER = "student", "fused", "teacher:"
"""Names of the sources of a run, and the beginning of a teacher's."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The sources of class logits of a finished run, by name, and the data with the renderings that they read.

    `main` is the teacher that the others of a fusion are added to, or the first one; None without teachers.
    """

    sources: Mapping[str, TeacherBase]
    dataset: Dataset
    main: str | None
    parts: tuple[str, ...] = ()
    """The sources that the fused teacher is fused of."""


def finished_run(run: Path, recipe: Recipe, dataset: Dataset, devices: Devices) -> Finished:
    """The student of a finished run from its folder, and its teachers from the outcomes of its stages.

    A recipe without teachers gives the student alone.

    Raises:
        RunError: the run is not finished, or a file of it is damaged.
        RecipeError: a network cannot be built again; says why.
    """
    student = load_student(run, recipe.student if isinstance(recipe.student, Network) else None)
    sources: dict[str, TeacherBase] = {}
    main, parts = None, tuple[str, ...]()
    if recipe.teachers:
        plan = _restored(run, recipe, dataset, devices)
        dataset = plan.dataset
        sources, main = _teachers(plan), _main(plan)
        fusion = _fusion(plan)
        parts = () if fusion is None else tuple(f"{TEACHER}{part}" for part in fusion.coefficients)
    network = student.network.to(devices.device)
    dataset = rendered(dataset, renderings_of(student.inputs, dataset), network.name)
    if network.spec is None:
        network.probe(dataset.example().to(devices.device))
    return Finished({STUDENT: Live(STUDENT, network), **sources}, dataset, main, parts)


def _restored(run: Path, recipe: Recipe, dataset: Dataset, devices: Devices) -> Plan:
    """The plan of a run with the weights at its end.

    The keys of its stages are those in the folder: they also name the machine's kind of device and the versions of the
    libraries, which an analysis may have others of.
    """
    recipe = with_initial_weights(recipe, dataset, run, devices, lambda text: None)
    plan = prepare(recipe, dataset, devices.device, load_choices(run))
    for job in plan.jobs:
        folder = run / "stages" / job.folder
        try:
            key = str(read_sealed(folder / OUTCOME)["key"])
        except (ValueError, KeyError) as error:
            raise RunError(f"{folder} holds no result of this stage ({error}); finish the run with --resume") from error
        load_outcome(folder, job.modules(), key)
        for module in job.modules().values():
            module.requires_grad_(False).eval()
    for member in plan.members.values():
        member.requires_grad_(False).eval()
    return plan


def _teachers(plan: Plan) -> dict[str, TeacherBase]:
    """The teachers whose logits are of the data's classes, and the fused one of the last method that has one."""
    wanted = (len(plan.dataset.classes),)
    known = {name: TeacherBase.of(teacher) for name, teacher in plan.teachers.items() if plan.trains_logits(name)}
    found = {f"{TEACHER}{name}": teacher for name, teacher in known.items() if teacher.spec.logits == wanted}
    fusion = _fusion(plan)
    if fusion is not None and all(f"{TEACHER}{part}" in found for part in fusion.coefficients):
        parts = {part: known[part] for part in fusion.coefficients}
        found[FUSED] = Fused(
            parts,
            fusion.coefficients,
            temperatures=fusion.temperatures,
            per_sample=fusion.per_sample,
        )
    return {name: teacher.select({Signal.LOGITS}) for name, teacher in found.items()}


def _fusion(plan: Plan) -> Fusion | None:
    """What the last method that fuses logits does with them."""
    for job in reversed(plan.jobs):
        fusion, needs = getattr(job.method, "fusion", None), job.method.needs()
        if isinstance(fusion, Fusion) and all(Signal.LOGITS in needs.get(part, ()) for part in fusion.coefficients):
            return fusion
    return None


def _main(plan: Plan) -> str | None:
    fusion = _fusion(plan)
    names = list(plan.teachers) if fusion is None else list(fusion.coefficients)
    return f"{TEACHER}{names[0]}" if names else None


def rows_of(dataset: Dataset, split: str, most: int | None = None) -> torch.Tensor:
    """The rows of a split, or `most` of them at equal distances, in increasing order."""
    rows = dataset.splits[split].sort().values
    if most is None or most >= len(rows):
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]

"""The stages of each method, for any kit: one function a method, one line each in the table at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossdistill.errors import SettingError, nearest
from crossdistill.method import STUDENT
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.specialise import Specialise
from crossdistill.methods.supervised import Supervised
from crossdistill.recipe import Recipe
from crossdistill.recipes.kit import Kind, Kit, Length
from crossdistill.stage import Stage

Stages = Callable[[Kit, str, Sequence[str]], tuple[Stage, ...]]


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """How a method's recipe is made: its stages, and the teachers that it takes by default (None: no teacher)."""

    stages: Stages
    kind: Kind | None
    kinds: tuple[Kind, ...] = ()
    """The other choices of teachers that make sense."""


def pretrained(kit: Kit, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """One supervised stage for each teacher; shared by every recipe that uses the same teacher."""
    return tuple(
        Stage(
            name=f"supervised-{name}",
            method=Supervised(),
            learner=name,
            teachers=(),
            epochs=kit.supervised.epochs,
            batch_size=kit.batch_size,
            optimizer=kit.optimizer(kit.supervised),
        )
        for name in teachers
    )


def supervised(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """The student alone, from labels."""
    length = kit.supervised
    return (_stage(f"supervised-{student}", Supervised(), kit, length, teachers=()),)


def kd(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Teachers from labels, then the student from labels and their softened predictions."""
    return (*pretrained(kit, teachers), _stage("kd", kit.kd, kit, kit.distil, teachers=tuple(teachers)))


def mst_distill(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """All members together, then masks for the teachers, then the student with its gate (Li et al., 2025)."""
    return (
        _collaborate(kit, teachers),
        _specialise(kit, teachers),
        _stage("route", kit.route, kit, kit.distil),
    )


def mst_distill_release(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """MST-Distill with every parity switch of the released code (its faults included)."""
    masks = Specialise(taps=_taps(kit, teachers), width_factor=kit.width_factor, select="joint", stacked=True)
    joint = _specialise(kit, teachers).model_copy(update={"method": masks})
    release = {
        "reduce": "mean",
        "balance_divided": True,
        "decay_after_first": True,
        "gate_activation": False,
        "gate_detached": False,
    }
    route = kit.route.model_copy(update=release)
    return (_collaborate(kit, teachers), joint, _stage("route", route, kit, kit.distil))


def mean_of_diverse(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (a): none of the three stages, the mean of diverse teachers."""
    return kd(kit, student, teachers)


def routed_only(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (b): routing alone, over the pretrained teachers."""
    return (*pretrained(kit, teachers), _stage("route", kit.route, kit, kit.distil))


def collaborated_routed(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (c): collaboration and routing, without masks."""
    return (_collaborate(kit, teachers), _stage("route", kit.route, kit, kit.distil))


def specialised_routed(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (d): masks and routing, over pretrained teachers and a student that was trained alone."""
    alone = _stage(f"supervised-{student}", Supervised(), kit, kit.supervised, teachers=())
    return (*pretrained(kit, teachers), alone, _specialise(kit, teachers), _stage("route", kit.route, kit, kit.distil))


def collaborated_specialised(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (e): collaboration and masks, then the mean of the specialised teachers instead of routing."""
    return (_collaborate(kit, teachers), _specialise(kit, teachers), _stage("kd", kit.kd, kit, kit.distil))


def _stage(name: str, method: Any, kit: Kit, length: Length, **settings: Any) -> Stage:
    return Stage(
        name=name,
        method=method,
        epochs=length.epochs,
        batch_size=kit.batch_size,
        optimizer=kit.optimizer(length),
        **settings,
    )


def _collaborate(kit: Kit, teachers: Sequence[str]) -> Stage:
    # The reference neither validates nor selects here: the last weights go on.
    trains = (STUDENT, *teachers)
    return _stage("collaborate", Collaborate(), kit, kit.collaborate, trains=trains, select="last")


def _specialise(kit: Kit, teachers: Sequence[str]) -> Stage:
    method = Specialise(taps=_taps(kit, teachers), width_factor=kit.width_factor)
    return _stage("specialise", method, kit, kit.specialise, trains=())


def _taps(kit: Kit, teachers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {name: kit.taps[name] for name in teachers}


PLANS: Mapping[str, MethodPlan] = {
    "supervised": MethodPlan(supervised, None),
    "kd": MethodPlan(kd, "mm", ("cm", "mm+cm")),
    "mst-distill": MethodPlan(mst_distill, "mm+cm", ("mm", "cm")),
    "mst-distill-release": MethodPlan(mst_distill_release, "mm+cm", ("mm", "cm")),
    "mst-distill-a": MethodPlan(mean_of_diverse, "mm+cm"),
    "mst-distill-b": MethodPlan(routed_only, "mm+cm"),
    "mst-distill-c": MethodPlan(collaborated_routed, "mm+cm"),
    "mst-distill-d": MethodPlan(specialised_routed, "mm+cm"),
    "mst-distill-e": MethodPlan(collaborated_specialised, "mm+cm"),
}
"""Methods by the name that recipes and tables give them; `mst-distill` is ablation (f), all stages."""


def recipe(kit: Kit, method: str, *, student: str, teachers: Kind | None, seed: int, control: str | None) -> Recipe:
    """A method's recipe for one student of a kit.

    Raises:
        SettingError: there is no such method; says the nearest.
    """
    if method not in PLANS:
        raise SettingError(f"no method is called {method!r}; {nearest(method, PLANS)}")
    plan = PLANS[method]
    kind = None if plan.kind is None else (teachers or plan.kind)
    networks = kit.teachers(student, kind) if kind is not None else {}
    return Recipe.model_validate(
        {
            "name": f"{kit.data.name}/{method}",
            "data": kit.data,
            "student": kit.networks[student],
            "teachers": networks,
            "stages": plan.stages(kit, student, tuple(networks)),
            "seed": seed,
            "channels_last": kit.channels_last,
            "student_name": student,
            "control": control,
            "method": method,
            "kind": kind,
        }
    )

"""MST-Distill (Li et al., 2025): the stages of the whole method, of its released form, and of its ablations.

Every ablation (Table 3) weighs the teachers in the same way, cross-entropy + λ1 · divergence with the schedule of the
kit's `route`: those without routing take the mean over all teachers instead of the picked ones.
"""

from collections.abc import Mapping, Sequence

from crossdistill.method import STUDENT
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.specialise import Specialise
from crossdistill.methods.supervised import Supervised
from crossdistill.recipes.kit import Kit
from crossdistill.recipes.parts import MethodPlan, pretrained, stage_of, taps_of
from crossdistill.stage import Stage


def mst_distill(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """All members together, then masks for the teachers, then the student with its gate (Li et al., 2025)."""
    return (_collaborate(kit, teachers), _specialise(kit, teachers), _route(kit))


def mst_distill_release(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """MST-Distill with every parity switch of the released code (its faults included)."""
    masks = Specialise(taps=taps_of(kit, teachers), width_factor=kit.width_factor, select="joint", stacked=True)
    joint = _specialise(kit, teachers).model_copy(update={"method": masks})
    release = {
        "reduce": "mean",
        "balance_divided": True,
        "decay_after_first": True,
        "gate_activation": False,
    }
    route = kit.route.model_copy(update=release)
    return (_collaborate(kit, teachers), joint, stage_of("route", route, kit, kit.distil))


def mean_of_diverse(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (a): none of the three stages, the mean of diverse pretrained teachers."""
    return (*pretrained(kit, teachers), _mean(kit))


def routed_only(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (b): routing alone, over the pretrained teachers."""
    return (*pretrained(kit, teachers), _route(kit))


def collaborated_routed(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (c): collaboration and routing, without masks."""
    return (_collaborate(kit, teachers), _route(kit))


def specialised_routed(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (d): masks and routing, over pretrained teachers and a student that was trained alone."""
    alone = stage_of(f"supervised-{student}", Supervised(), kit, kit.supervised, teachers=())
    return (*pretrained(kit, teachers), alone, _specialise(kit, teachers), _route(kit))


def collaborated_specialised(kit: Kit, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (e): collaboration and masks, then the mean of the specialised teachers instead of routing."""
    return (_collaborate(kit, teachers), _specialise(kit, teachers), _mean(kit))


def _collaborate(kit: Kit, teachers: Sequence[str]) -> Stage:
    # The reference neither validates nor selects here: the last weights go on.
    trains = (STUDENT, *teachers)
    return stage_of("collaborate", Collaborate(), kit, kit.collaborate, trains=trains, select="last")


def _specialise(kit: Kit, teachers: Sequence[str]) -> Stage:
    method = Specialise(taps=taps_of(kit, teachers), width_factor=kit.width_factor)
    return stage_of("specialise", method, kit, kit.specialise, trains=())


def _route(kit: Kit) -> Stage:
    return stage_of("route", kit.route, kit, kit.distil)


def _mean(kit: Kit) -> Stage:
    return stage_of("mean", kit.route.model_copy(update={"routing": "mean"}), kit, kit.distil)


MST_DISTILL: Mapping[str, MethodPlan] = {
    "mst-distill": MethodPlan(mst_distill, "mm+cm", ("mm", "cm")),
    "mst-distill-release": MethodPlan(mst_distill_release, "mm+cm", ("mm", "cm")),
    "mst-distill-a": MethodPlan(mean_of_diverse, "mm+cm"),
    "mst-distill-b": MethodPlan(routed_only, "mm+cm"),
    "mst-distill-c": MethodPlan(collaborated_routed, "mm+cm"),
    "mst-distill-d": MethodPlan(specialised_routed, "mm+cm"),
    "mst-distill-e": MethodPlan(collaborated_specialised, "mm+cm"),
}
"""`mst-distill` is ablation (f), all stages."""

"""MST-Distill (Li et al., 2025): the stages of the whole method, in three presets, and of its ablations.

`mst-distill` is the default, `mst-distill-paper` follows the equations exactly, `mst-distill-release` follows the
released code; the table `SWITCHES` has their differences.

Every ablation (Table 3) weighs the teachers in the same way, cross-entropy + λ1 · divergence with the schedule of the
setup's `route`: ablations without routing take the mean over all teachers instead of the chosen ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crossdistill.method import STUDENT, MethodConfig
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.route import Route
from crossdistill.methods.specialise import Specialise
from crossdistill.methods.supervised import Supervised
from crossdistill.recipes.parts import Difference, MethodPlan, pretrained, stage_of, taps_of
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.stage import Stage


@dataclass(frozen=True, slots=True)
class Switch:
    """A setting of the method in its three presets; `why` is the source of each value."""

    setting: str
    paper: Any
    release: Any
    default: Any
    why: str


T_SQUARED = "no equation has T²; with it a gradient's size is that of T = 1, as in Hinton's KD and the released code"
SWITCHES: tuple[Switch, ...] = (
    Switch("collaborate.squared", False, True, True, T_SQUARED),
    Switch("specialise.squared", False, True, True, T_SQUARED),
    Switch("specialise.select", "each", "joint", "each", "Eq. 8 trains each mask by itself; one best epoch for all"),
    Switch(
        "specialise.stacked", False, True, False, "Eq. 7 has one mask for each teacher; a hook that is left in place"
    ),
    Switch("route.squared", False, True, True, T_SQUARED),
    Switch("route.reduce", "sum", "mean", "sum", "Eq. 14 adds up the k chosen teachers; equal at k = 1"),
    Switch("route.balance_divided", False, True, False, "Eq. 17 has no division by K; `batchmean` of a vector"),
    Switch(
        "route.decay_after_first", False, True, False, "λ decays after 30 and 10 epochs; also right after the first"
    ),
    Switch("route.gate_activation", True, False, True, "the gate is an MLP; without activation it is affine"),
    Switch("data.split", None, "sample", None, "the released indices are random over samples, so sources are shared"),
    Switch("data.release_compat", None, True, None, "released statistics are over all rows, test rows included"),
)
"""None: the data keep their value. `gate_detached`, which stops the gate's gradient at the student, is equal in all."""

FEW_LABELS = Difference(
    "route.weight_distil, weight_task, temperature, distil_decay_every",
    "by labels",
    "published",
    "below half of the labels validation chose a larger, constant share of the teachers (recipes/setup.py)",
)


def differences(preset: Literal["release", "default"]) -> tuple[Difference, ...]:
    """The differences of a preset from the paper's equations."""
    found = [(one, getattr(one, preset)) for one in SWITCHES]
    own = tuple(Difference(one.setting, value, one.paper, one.why) for one, value in found if value != one.paper)
    return (*own, FEW_LABELS) if preset == "default" else own


def mst_distill(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """All members together, then masks for the teachers, then the student with its gate (Li et al., 2025)."""
    return (_collaborate(setup, teachers), _specialise(setup, teachers), _route(setup))


def mst_distill_paper(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """MST-Distill exactly as in its equations: no T² factor, published weights for every fraction of labels."""
    return _preset("paper", setup, student, teachers)


def mst_distill_release(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """MST-Distill with every switch set as in the released code, including its faults."""
    return _preset("release", setup, student, teachers)


def _preset(
    preset: Literal["paper", "release"], setup: ExperimentSetup, student: str, teachers: Sequence[str]
) -> tuple[Stage, ...]:
    published = setup.model_copy(update={"route": Route()})
    stages = mst_distill(published, student, teachers)
    return tuple(one.model_copy(update={"method": _switched(one.method, preset)}) for one in stages)


def _switched(method: MethodConfig, preset: str) -> MethodConfig:
    start = f"{method.name}."
    own = {one.setting.removeprefix(start): getattr(one, preset) for one in SWITCHES if one.setting.startswith(start)}
    return method.model_copy(update=own)


def mean_of_diverse(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (a): none of the three stages, the mean of diverse pretrained teachers."""
    return (*pretrained(setup, teachers), _mean(setup))


def routed_only(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (b): routing alone, over the pretrained teachers."""
    return (*pretrained(setup, teachers), _route(setup))


def collaborated_routed(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (c): collaboration and routing, without masks."""
    return (_collaborate(setup, teachers), _route(setup))


def specialised_routed(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (d): masks and routing, over pretrained teachers and a student that was trained alone."""
    alone = stage_of(f"supervised-{student}", Supervised(), setup, setup.supervised, teachers=())
    return (*pretrained(setup, teachers), alone, _specialise(setup, teachers), _route(setup))


def collaborated_specialised(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (e): collaboration and masks, then the mean of the specialised teachers instead of routing."""
    return (_collaborate(setup, teachers), _specialise(setup, teachers), _mean(setup))


def _collaborate(setup: ExperimentSetup, teachers: Sequence[str]) -> Stage:
    # The reference neither validates nor selects in this stage: the last weights are kept.
    trains = (STUDENT, *teachers)
    return stage_of("collaborate", Collaborate(), setup, setup.collaborate, trains=trains, select="last")


def _specialise(setup: ExperimentSetup, teachers: Sequence[str]) -> Stage:
    method = Specialise(taps=taps_of(setup, teachers), width_factor=setup.width_factor)
    return stage_of("specialise", method, setup, setup.specialise, trains=())


def _route(setup: ExperimentSetup) -> Stage:
    return stage_of("route", setup.route, setup, setup.distil)


def _mean(setup: ExperimentSetup) -> Stage:
    return stage_of("mean", setup.route.model_copy(update={"routing": "mean"}), setup, setup.distil)


MST_DISTILL: Mapping[str, MethodPlan] = {
    "mst-distill": MethodPlan(mst_distill, "mm+cm", ("mm", "cm"), differs=differences("default")),
    "mst-distill-paper": MethodPlan(mst_distill_paper, "mm+cm", ("mm", "cm"), differs=()),
    "mst-distill-release": MethodPlan(mst_distill_release, "mm+cm", ("mm", "cm"), differs=differences("release")),
    "mst-distill-a": MethodPlan(mean_of_diverse, "mm+cm"),
    "mst-distill-b": MethodPlan(routed_only, "mm+cm"),
    "mst-distill-c": MethodPlan(collaborated_routed, "mm+cm"),
    "mst-distill-d": MethodPlan(specialised_routed, "mm+cm"),
    "mst-distill-e": MethodPlan(collaborated_specialised, "mm+cm"),
}
"""Plans of the presets and ablations; `mst-distill` is ablation (f), all stages."""

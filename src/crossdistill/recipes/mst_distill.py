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
from crossdistill.recipes.parts import Difference, MethodPlan, from_labels, stage_of, taps_of
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.stage import Stage


@dataclass(frozen=True, slots=True)
class Switch:
    """A setting of the method in its three presets; `why` is the reason for the values."""

    setting: str
    paper: Any
    release: Any
    default: Any
    why: str


T_SQUARED = "the equations have no factor T²; with it gradients do not shrink with T (Hinton's KD, the released code)"
SWITCHES: tuple[Switch, ...] = (
    Switch("collaborate.squared", False, True, True, T_SQUARED),
    Switch("specialise.squared", False, True, True, T_SQUARED),
    Switch(
        "specialise.select",
        "each",
        "joint",
        "each",
        "Eq. 8 trains each mask by itself; the release selects one epoch for all masks",
    ),
    Switch(
        "specialise.stacked",
        False,
        True,
        False,
        "Eq. 7 has one mask for each teacher; the release does not remove earlier hooks",
    ),
    Switch("route.squared", False, True, True, T_SQUARED),
    Switch(
        "route.reduce", "sum", "mean", "sum", "Eq. 14 is a sum over the k chosen teachers; equal to the mean at k = 1"
    ),
    Switch(
        "route.balance_divided",
        False,
        True,
        False,
        "Eq. 17 has no division by K; the release takes `batchmean` of a vector",
    ),
    Switch(
        "route.decay_after_first",
        False,
        True,
        False,
        "λ decays after 30 and 10 epochs; in the release also after the first epoch",
    ),
    Switch(
        "route.gate_activation",
        True,
        False,
        True,
        "the gate is an MLP; the release has no activation, so its gate is affine",
    ),
    Switch("data.split", None, "sample", None, "the released splits are random over samples, so splits share sources"),
    Switch(
        "data.release_compat", None, True, None, "the release computes statistics over all rows, test rows included"
    ),
)
"""None: the data keep their value. `gate_detached`, which stops the gate's gradient at the student, is equal in all."""

FEW_LABELS = Difference(
    "route.weight_distil, weight_task, temperature, distil_decay_every",
    "by labels",
    "published",
    "below half of the labels, a larger and constant weight of the teachers was best on validation (recipes/setup.py)",
)


def differences(preset: Literal["release", "default"]) -> tuple[Difference, ...]:
    """The differences of a preset from the paper's equations."""
    switched = tuple(
        Difference(switch.setting, value, switch.paper, switch.why)
        for switch in SWITCHES
        if (value := getattr(switch, preset)) != switch.paper
    )
    return (*switched, FEW_LABELS) if preset == "default" else switched


def mst_distill(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Collaborative training of all members, then masks for the teachers, then routing (Li et al., 2025)."""
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
    return tuple(stage.model_copy(update={"method": _switched(stage.method, preset)}) for stage in stages)


def _switched(method: MethodConfig, preset: str) -> MethodConfig:
    settings = {}
    for switch in SWITCHES:
        name, _, field = switch.setting.partition(".")
        if name == method.name:
            settings[field] = getattr(switch, preset)
    return method.model_copy(update=settings)


def mean_of_diverse(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (a): none of the three stages, the mean of diverse pretrained teachers."""
    return (*from_labels(setup, teachers), _mean(setup))


def routed_only(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (b): routing alone, over the pretrained teachers."""
    return (*from_labels(setup, teachers), _route(setup))


def collaborated_routed(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (c): collaboration and routing, without masks."""
    return (_collaborate(setup, teachers), _route(setup))


def specialised_routed(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (d): masks and routing, over pretrained teachers and a student that was trained alone."""
    alone = stage_of(f"supervised-{student}", Supervised(), setup, setup.supervised, teachers=())
    return (*from_labels(setup, teachers), alone, _specialise(setup, teachers), _route(setup))


def collaborated_specialised(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Ablation (e): collaboration and masks, then the mean of the specialised teachers instead of routing."""
    return (_collaborate(setup, teachers), _specialise(setup, teachers), _mean(setup))


def _collaborate(setup: ExperimentSetup, teachers: Sequence[str]) -> Stage:
    # The reference neither validates nor selects in this stage: the last weights are kept.
    trains = (STUDENT, *setup.trainable(teachers))
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

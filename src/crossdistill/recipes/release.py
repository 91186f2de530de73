"""The methods in Table 1 of MST-Distill as its released code computes them: several differ from their publications.

`NAME-release` has the layers, weights and errors of the released scripts, with the published weights for every
fraction of labels; each entry lists its differences from the method's own paper. There are two exceptions. The released
FitNets select the second stage's epoch by the mixed loss, whose scale jumps with its weights; here it is selected by
cross-entropy, as everywhere. DML has no released code; its preset is the first stage of MST-Distill with detached
teachers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossdistill.errors import SettingError
from crossdistill.method import STUDENT, MethodConfig
from crossdistill.methods import C2KD, CRD, DML, KD, MLLD, OFA, RKD, Hint, Salience
from crossdistill.methods.collaborate import Collaborate
from crossdistill.recipes.mst_distill import differences
from crossdistill.recipes.parts import Difference, MethodPlan, from_labels, stage_of
from crossdistill.recipes.setup import ExperimentSetup, Length
from crossdistill.stage import OptimizerConfig, Stage

Layers = Mapping[str, tuple[str, ...]]


def kd(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """KD as in the comparison of MST-Distill's released code."""
    return _distilled(KD(), setup, teachers)


def mlld(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """MLLD as in MST-Distill's released code: means, one view, no masks."""
    return _distilled(MLLD(), setup, teachers)


def fitnets(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """FitNets as in MST-Distill's released code: only the hinted layers train, compared before their ReLU."""
    if len(teachers) != 1:
        raise SettingError(f"fitnets-release has one teacher, since its layers differ by teacher; not {list(teachers)}")
    mine, theirs = setup.hints.get(student, {}).get(teachers[0], (setup.layers(student), setup.layers(teachers[0])))
    method = Hint(taps=mine, teacher_taps={teachers[0]: theirs}, regressors="released")
    length = setup.distil.model_copy(update={"learning_rate": max(setup.distil.learning_rate, 1e-3)})
    trains = tuple(f"{STUDENT}:{tap}" for tap in mine)
    hint = stage_of("hint", method, setup, length, teachers=tuple(teachers), trains=trains)
    return (*from_labels(setup, teachers), hint, stage_of("kd", KD(), setup, setup.distil, teachers=tuple(teachers)))


def ofa(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """OFA as in MST-Distill's released code: the mean over stages, no term for the last logits."""
    taps = dict.fromkeys([*(setup.spatial(student, student, "before") or ()), setup.layers(student)[-1]])
    return _distilled(OFA(taps=tuple(taps), stages="mean", final_epsilon=None), setup, teachers)


def rkd(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """RKD as in MST-Distill's released code: unit vectors, the teacher's by a map that is not trained."""
    mine, theirs = _late(setup, student, teachers)
    return _distilled(RKD(taps=mine, teacher_taps=theirs, maps="max-pooled", width=128), setup, teachers)


def crd(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """CRD as in MST-Distill's released code: 4,096 negatives, layers before their activation."""
    mine, theirs = _late(setup, student, teachers)
    return _distilled(CRD(taps=mine, teacher_taps=theirs, maps="max-pooled"), setup, teachers)


def dml(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """DML as in the first stage of MST-Distill, with detached teachers; no code for DML was released."""
    return (
        stage_of(
            "dml", DML(), setup, setup.distil, trains=(STUDENT, *setup.trainable(teachers)), teachers=tuple(teachers)
        ),
    )


def mgdfr(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """MGDFR as in MST-Distill's released code: no unit is filled, so it is KD after co-training."""
    together: dict[str, Any] = {"trains": (STUDENT, *setup.trainable(teachers)), "select": "last"}
    agree = stage_of("agree", Collaborate(distance="mse-released"), setup, setup.collaborate, **together)
    sgd = OptimizerConfig(name="sgd", learning_rate=10 * setup.collaborate.learning_rate, momentum=0.9)
    salience = Salience(taps={name: setup.layers(name)[-1] for name in teachers}, fill="none")
    return (
        agree.model_copy(update={"optimizer": sgd}),
        stage_of("salience", salience, setup, Length(epochs=0, learning_rate=1e-3), trains=()),
        stage_of("kd", KD(), setup, setup.distil, fresh=True),
    )


def c2kd(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """C2KD as in MST-Distill's released code: a constant rate, layers before their activation."""
    taps = {name: (setup.unflattened.get(name) or setup.layers(name)[-1],) for name in (student, *teachers)}
    method = C2KD(taps=taps[student], teacher_taps={name: taps[name] for name in teachers})
    stage = stage_of(
        "c2kd", method, setup, setup.distil, trains=(STUDENT, *setup.trainable(teachers)), teachers=tuple(teachers)
    )
    sgd = OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9)
    return (*from_labels(setup, teachers), stage.model_copy(update={"optimizer": sgd}))


def _distilled(method: MethodConfig, setup: ExperimentSetup, teachers: Sequence[str]) -> tuple[Stage, ...]:
    return (
        *from_labels(setup, teachers),
        stage_of(method.name, method, setup, setup.distil, teachers=tuple(teachers)),
    )


def _late(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[tuple[str, ...], Layers]:
    """The last of each network's named layers, before its activation."""
    return setup.layers(student)[-1:], {name: setup.layers(name)[-1:] for name in teachers}


def _differ(*of_method: tuple[str, Any, Any, str]) -> tuple[Difference, ...]:
    """Differences of a preset from the method's paper, then the data settings that all release presets share."""
    shared = [difference for difference in differences("release") if difference.setting.startswith("data.")]
    return (*(Difference(*fields) for fields in of_method), *shared)


MIX = "the release trains all compared methods with (1 - a) · CE + a · loss and halves a every 30 epochs"
BEFORE = "its hooks read the outputs of convolutions and linear layers, which are before their ReLU"

RELEASE: Mapping[str, MethodPlan] = {
    "kd-release": MethodPlan(kd, "mm", ("cm",), differs=_differ(("kd.alpha", 0.5, 0.9, MIX))),
    "mlld-release": MethodPlan(
        mlld,
        "mm",
        ("cm",),
        differs=_differ(
            (
                "mlld.correlations",
                "mean",
                "published",
                "the release takes means over entries instead of sums over classes or rows",
            ),
            ("mlld.alpha", 0.5, "0.1 and 0.9, fixed", MIX),
            ("mlld views and masks", "one view, none", "two views, medians", "the released code has neither"),
        ),
    ),
    "fitnets-release": MethodPlan(
        fitnets,
        "mm",
        ("cm",),
        differs=_differ(
            ("hint.trains", "hinted layers", "all up to them", "its optimizer takes parameters by the layers' names"),
            (
                "hint.regressors",
                "released",
                "fitnets",
                "the release has a convolution of kernel size 4 between vectors",
            ),
            ("hint.taps", "two, before activation", "one, after it", BEFORE),
        ),
    ),
    "ofa-release": MethodPlan(
        ofa,
        "mm",
        ("cm",),
        differs=_differ(
            ("ofa.stages", "mean", "sum", "its loss is divided by the number of stages"),
            ("ofa.final_epsilon", None, 1.0, "the release has no term for the student's last logits"),
            ("ofa.taps", "before activation", "after it", BEFORE),
        ),
    ),
    "rkd-release": MethodPlan(
        rkd,
        "mm",
        ("cm",),
        differs=_differ(
            ("rkd.width", 128, None, "both sides are embedded first; the teacher's embedding is under no_grad"),
            (
                "rkd.maps",
                "max-pooled",
                "mean",
                "its hook reads the audio network's conv3 pooled and flattened, without the ReLU",
            ),
            ("rkd.taps", "before activation", "after it", BEFORE),
        ),
    ),
    "crd-release": MethodPlan(
        crd,
        "mm",
        ("cm",),
        differs=_differ(
            ("crd.negatives", 4096, 16384, "the setting of the released script"),
            (
                "crd.maps",
                "max-pooled",
                "mean",
                "its hook reads the audio network's conv3 pooled and flattened, without the ReLU",
            ),
            ("crd.taps", "before activation", "after it", BEFORE),
        ),
    ),
    "dml-release": MethodPlan(
        dml,
        "mm+cm",
        ("mm", "cm"),
        differs=_differ(
            ("dml.temperature", 4.0, 1.0, "no code was released: the function of MST-Distill's first stage"),
            ("dml.squared", True, False, "the same function"),
            ("dml.averaged", False, True, "that stage sums the divergences of a member"),
        ),
    ),
    "mgdfr-release": MethodPlan(
        mgdfr,
        "cm",
        differs=_differ(
            ("salience.fill", "none", "mean", "its hook has no branch for 'freeze', so outputs do not change"),
            ("collaborate.distance", "mse-released", "mse", "differs on dense logits alone: one class of one row"),
        ),
    ),
    "c2kd-release": MethodPlan(
        c2kd,
        "cm",
        differs=_differ(
            ("c2kd learning rate", "constant", "polynomial", "the decay changes an argument, not the optimizer"),
            ("c2kd.taps", "before activation", "after it", BEFORE),
        ),
    ),
}
"""The nine compared methods in Table 1, each with its differences."""

"""The stages of each method, for any setup.

A method with an `acts_on` needs nothing else; the other methods have a function here, and an entry in the table at the
end.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError, nearest
from crossdistill.method import STUDENT, ActsOn, MethodConfig
from crossdistill.methods import C2KD, DML, KD, METHODS, Hint, Salience
from crossdistill.methods.collaborate import Collaborate
from crossdistill.methods.supervised import Supervised
from crossdistill.recipe import Recipe
from crossdistill.recipes.mst_distill import MST_DISTILL
from crossdistill.recipes.parts import MethodPlan, Stages, from_labels, stage_of
from crossdistill.recipes.release import RELEASE
from crossdistill.recipes.richkd import RICHKD
from crossdistill.recipes.setup import ExperimentSetup, Kind, Length
from crossdistill.recipes.translation import TRANSLATION
from crossdistill.stage import OptimizerConfig, Stage
from crossdistill.weighting import DotConfig

Make = Callable[[ExperimentSetup, str, Sequence[str]], MethodConfig]
"""A method's settings for a setup, a student and its teachers."""


def supervised(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """The student alone, from labels."""
    # Where a student has a published rate of its own, it trains alone at that rate too.
    length = setup.supervised if setup.distil.settings is None else setup.distil
    return (stage_of(f"supervised-{student}", Supervised(), setup, length, teachers=()),)


def distilled(make: Make, **settings: Any) -> Stages:
    """Teachers from labels, then one stage of distillation with the method that `make` returns."""

    def stages(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
        method = make(setup, student, teachers)
        stage = stage_of(method.name, method, setup, setup.distil, teachers=tuple(teachers))
        own = settings.get("optimizer")
        if own is not None and setup.distil.settings is not None:
            # The rate and schedule of the data, with the momentum that the weighting needs.
            plain = {"momentum": own.momentum, "weight_decay": own.weight_decay}
            own = stage.optimizer.model_copy(update=plain)
        changes = {**settings, "optimizer": own} if own is not None else settings
        return (*from_labels(setup, teachers), stage.model_copy(update=changes))

    return stages


def on_logits(method: type[MethodConfig], **settings: Any) -> Make:
    """A method that reads no layers."""
    return lambda setup, student, teachers: _with_shared_settings(method, setup, settings)


def on_last(method: type[MethodConfig], **settings: Any) -> Make:
    """A method on each network's penultimate layer."""

    def make(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> MethodConfig:
        named = {name: (setup.penultimate(name),) for name in (student, *teachers)}
        layers = {"taps": named[student], "teacher_taps": {name: named[name] for name in teachers}}
        return _with_shared_settings(method, setup, {**settings, **layers})

    return make


def on_maps(method: type[MethodConfig], most: int | None = None, **settings: Any) -> Make:
    """A method on each network's spatial layers, the last `most` of them.

    In a multimodal network, the layers are those of the student's modality. Where the setup names none, the method
    chooses layers or raises an error.
    """

    def make(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> MethodConfig:
        spatial = {name: setup.spatial(name, student, method.activation) for name in (student, *teachers)}
        count = min([len(maps) for maps in spatial.values() if maps] + ([most] if most else []), default=0)
        named = {name: maps[-count:] for name, maps in spatial.items() if maps}
        layers = {"taps": named.pop(student, None), "teacher_taps": named}
        return _with_shared_settings(method, setup, {**settings, **layers})

    return make


def on_stages(method: type[MethodConfig], **settings: Any) -> Make:
    """A method on the student's spatial layers and its late one."""

    def make(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> MethodConfig:
        last = setup.tap(student, setup.layers(student)[-1], method.activation)
        taps = dict.fromkeys([*(setup.spatial(student, student, method.activation) or ()), last])
        return _with_shared_settings(method, setup, {**settings, "taps": tuple(taps)})

    return make


def fitnets(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Teachers from labels; then hints, which train all layers up to the hinted ones; then KD."""
    taps = {name: tuple(setup.tap(name, tap, "after") for tap in setup.layers(name)) for name in (student, *teachers)}
    layers = {"taps": taps[student], "teacher_taps": {name: taps[name] for name in teachers}}
    method = Hint.model_validate({**layers, **setup.published.get("hint", {})})
    # The published rate of the hint stage is ten times that of the other stages, which is 1e-4.
    rate = max(setup.distil.learning_rate, 1e-3)
    hint = stage_of(
        "hint",
        method,
        setup,
        setup.distil.model_copy(update={"learning_rate": rate}),
        teachers=tuple(teachers),
    )
    return (
        *from_labels(setup, teachers),
        hint,
        stage_of("kd", setup.kd, setup, setup.distil, teachers=tuple(teachers)),
    )


def dml(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """All members train on labels and on each other's predictions; the student's best epoch is kept."""
    return (
        stage_of(
            "dml", DML(), setup, setup.distil, trains=(STUDENT, *setup.trainable(teachers)), teachers=tuple(teachers)
        ),
    )


def c2kd(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Teachers from labels, then all members together with proxies; SGD at the published rate."""
    # A proxy's size grows with its squared input width: instead of a flattened map it reads the map and averages it.
    taps = {name: (setup.unflattened.get(name) or setup.penultimate(name),) for name in (student, *teachers)}
    method = C2KD(taps=taps[student], teacher_taps={name: taps[name] for name in teachers})
    stage = stage_of("c2kd", method, setup, setup.distil, trains=(STUDENT, *setup.trainable(teachers)))
    sgd = OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9)
    return (*from_labels(setup, teachers), stage.model_copy(update={"optimizer": sgd, "teachers": tuple(teachers)}))


def mgdfr(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
    """Co-training of all members; teacher units that the student cannot match are replaced; KD of a new student."""
    together: dict[str, Any] = {"trains": (STUDENT, *setup.trainable(teachers)), "select": "last"}
    agree = stage_of("agree", Collaborate(distance="mse"), setup, setup.collaborate, **together)
    if setup.collaborate.settings is None:
        # The published rate, 1e-3, is ten times the rate of Adam.
        sgd = OptimizerConfig(name="sgd", learning_rate=10 * setup.collaborate.learning_rate, momentum=0.9)
        agree = agree.model_copy(update={"optimizer": sgd})
    salience = Salience(taps={name: setup.layers(name)[-1] for name in teachers})
    return (
        agree,
        stage_of("salience", salience, setup, Length(epochs=0, learning_rate=1e-3), trains=()),
        stage_of("kd", setup.kd, setup, setup.distil, fresh=True),
    )


def _data(setup: ExperimentSetup, plan: MethodPlan) -> DataConfig | Dataset:
    """The setup's data, with those settings of the preset that this kind of data has."""
    if isinstance(setup.data, Dataset):
        return setup.data
    fields = type(setup.data).model_fields
    settings = {name: value for name, value in plan.data_settings().items() if name in fields}
    return setup.data.model_copy(update=settings)


def _with_shared_settings(
    method: type[MethodConfig], setup: ExperimentSetup, settings: Mapping[str, Any]
) -> MethodConfig:
    """The method as published, except for settings that are equal within a setup.

    These are KD's share of the loss, for methods that mix it with the task loss as KD does, and a warm-up in the
    published proportion (20 of 240 epochs).
    """
    shared: dict[str, Any] = {}
    if "decay_every" in method.model_fields:
        equal = {"alpha", "decay_every"} if method is not KD else set(KD.model_fields) - {"name"}
        shared = setup.kd.model_dump(include=equal)
    if "warm_up" in method.model_fields:
        shared = {"warm_up": method.model_fields["warm_up"].default * setup.distil.epochs // 240}
    name = method.model_fields["name"].default
    return method.model_validate({**shared, **setup.published.get(name, {}), **settings})


SGD = OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.0)
"""The optimizer for DOT, which computes its own momentum."""
OTHERS: tuple[Kind, ...] = ("cm", "mm+cm")

MAKE: Mapping[ActsOn, Callable[[type[MethodConfig]], Make]] = {
    "logits": on_logits,
    "last": on_last,
    "maps": on_maps,
    "last map": partial(on_maps, most=1),
    "student's layers": on_stages,
}


def _one_stage(method: type[MethodConfig], acts_on: ActsOn) -> MethodPlan:
    return MethodPlan(distilled(MAKE[acts_on](method)), "mm", OTHERS, sys.modules[method.__module__].__doc__)


RIVALS: Mapping[str, MethodPlan] = {
    **{name: _one_stage(method, method.acts_on) for name, method in METHODS.items() if method.acts_on},
    "average-kd": MethodPlan(
        distilled(on_logits(KD, combine="probabilities")),
        "mm+cm",
        described="KD on the mean of all teachers' predictions.",
    ),
    "c2kd": MethodPlan(c2kd, "cm"),
    "dml": MethodPlan(dml, "mm+cm", ("mm", "cm")),
    "dot": MethodPlan(
        distilled(on_logits(KD), weighting=DotConfig(), optimizer=SGD),
        "mm",
        OTHERS,
        "KD with a separate momentum for each loss term: DOT (Zhao et al., ICCV 2023).",
    ),
    "fitnets": MethodPlan(fitnets, "mm", OTHERS),
    "lskd": MethodPlan(
        distilled(on_logits(KD, standardise=True, temperature=2.0, fixed=(0.1, 9.0))),
        "mm",
        OTHERS,
        "KD on standardised logits (Sun et al., CVPR 2024).",
    ),
    "mgdfr": MethodPlan(mgdfr, "cm"),
}

PLANS: Mapping[str, MethodPlan] = {
    "supervised": MethodPlan(supervised, None),
    **dict(sorted({**RIVALS, **RELEASE, **RICHKD, **TRANSLATION}.items())),
    **MST_DISTILL,
}
"""Methods by their name in recipes and tables."""


def recipe(
    setup: ExperimentSetup, method: str, *, student: str, teachers: Kind | None, seed: int, control: str | None
) -> Recipe:
    """A method's recipe for one student of a setup.

    Raises:
        SettingError: there is no such method or student (the message names the nearest), or no such teachers.
    """
    if method not in PLANS:
        raise SettingError(f"no method is called {method!r}; {nearest(method, PLANS)}")
    if student not in setup.networks:
        raise SettingError(f"no student is called {student!r}; {nearest(student, setup.networks)}")
    plan = PLANS[method]
    kind = None if plan.kind is None else setup.kind(teachers, plan.kind, plan.kinds)
    networks = setup.teachers(student, kind) if kind is not None else {}
    added = {} if plan.added is None else plan.added(setup)
    return Recipe.model_validate(
        {
            "name": f"{setup.data.name}/{method}",
            "data": _data(setup, plan),
            "student": setup.networks[student],
            "teachers": {**networks, **added},
            "stages": plan.stages(setup, student, tuple(networks)),
            "seed": seed,
            "channels_last": setup.channels_last,
            "student_name": student,
            "control": control,
            "method": method,
            "kind": kind,
        }
    )


def preset_notes(recipe: Recipe) -> list[str]:
    """Lines about a preset: settings that it determines in a recipe, and settings that the recipe's data lack."""
    plan = PLANS.get(recipe.method or "")
    lines, without = [], []
    for difference in () if plan is None else plan.differs or ():
        holder, _, field = difference.setting.partition(".")
        methods = {stage.method.name: stage.method for stage in recipe.stages}
        value = getattr(recipe.data if holder == "data" else methods.get(holder), field, None)
        if value == difference.value:
            lines.append(f"{difference.setting}={value}")
        elif value is None and holder == "data":
            without.append(difference.setting)
    notes = [f"{recipe.method}: {', '.join(lines)}"] if lines else []
    if without:
        notes.append(f"{recipe.method}: {recipe.name.partition('/')[0]} has no {', '.join(without)}")
    return notes

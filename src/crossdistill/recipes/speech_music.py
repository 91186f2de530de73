"""Speech and music: one student from teachers of several domains, without labels (arXiv 2506.07237).

    crossdistill run speech-music/translate --set data.manifest=clips.csv \
        --set teachers.speech=transformers:HUBERT --set teachers.music=transformers:MERT

A teacher's name is the domain whose rows it teaches, unless `domains.NAME` says otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from crossdistill.data import find_data
from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.method import STUDENT
from crossdistill.methods.domain_routing import Routing
from crossdistill.methods.multi_distillation import MultiDistillation
from crossdistill.nets.feature_translators import TranslatorKind
from crossdistill.nets.standardisation import Standardise
from crossdistill.overrides import sentences
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes.setup import Seed
from crossdistill.stage import MergeConfig, OptimizerConfig, Stage

DATA, MODEL = "speech-music", "hubert-student-2"
WARM_UP = 0.07
"""Share of the steps; the published warm-up is 14,000 of 200,000."""
MERGE = "merge"
ONE_START = MergeConfig(weights={STUDENT: 1.0})
"""Students of single teachers start from the first weights of the student, so that they can be merged."""
Settings = TypeVar("Settings", bound=BaseModel)
Make = Callable[[MultiDistillation, Sequence[str], Callable[..., Stage]], tuple[Stage, ...]]


def optimizer(epochs: int, learning_rate: float = 2e-4) -> OptimizerConfig:
    """AdamW with a linear warm-up and decay, as published; norms and biases do not decay."""
    return OptimizerConfig(
        name="adamw",
        learning_rate=learning_rate,
        weight_decay=0.01,
        arguments={"betas": [0.9, 0.98], "eps": 1e-6},
        schedule="linear",
        warm_up=WARM_UP * epochs,
        no_decay_on_norms_and_biases=True,
    )


def _translate(method: MultiDistillation, teachers: Sequence[str], stage: Callable[..., Stage]) -> tuple[Stage, ...]:
    """Each clip teaches the layers of its domain's teacher (Wei et al., 2025)."""
    return (stage("translate", method, teachers),)


def _soft(method: MultiDistillation, teachers: Sequence[str], stage: Callable[..., Stage]) -> tuple[Stage, ...]:
    """Each clip weighs every teacher by how well its domain matches (USAD 2.0)."""
    return (stage("translate", method, teachers),)


def _second(method: MultiDistillation, teachers: Sequence[str], stage: Callable[..., Stage]) -> tuple[Stage, ...]:
    """All teachers but the last; then the last one, a supervised encoder such as Whisper's (USAD 2.0)."""
    if len(teachers) < 2:
        raise SettingError(
            f"{DATA}/second-stage needs the teachers of the first stage and one of the second, and has "
            f"{', '.join(teachers) or 'none'}; add --set teachers.NAME=transformers:FOLDER"
        )
    if method.routing == "soft" and len(teachers) == 2:
        raise SettingError(
            f"{DATA}/second-stage: each stage has one teacher, which soft routing has nothing to weigh against; leave "
            "routing out, or take more teachers"
        )
    *first, last = teachers
    return (
        stage("translate", _only(method, first), first),
        stage("second", _only(method, [last]), [last]),
    )


def _merge(method: MultiDistillation, teachers: Sequence[str], stage: Callable[..., Stage]) -> tuple[Stage, ...]:
    """A student for each teacher, all of one first state; then the student is merged from them (2505.13270)."""
    alone = [
        stage(single(name), _alone(method, name, teachers), [name], learner=single(name), merge=ONE_START)
        for name in teachers
    ]
    # Its heads are those of the students, so that its validation has the losses of all teachers.
    return (*alone, stage("merge", method, teachers, epochs=0, optimizer=OptimizerConfig()))


METHODS: Mapping[str, Make] = {
    "translate": _translate,
    "translate-soft": _soft,
    "second-stage": _second,
    MERGE: _merge,
}
"""The recipes of this family, by name."""


def speech_music(
    method: str,
    *,
    data: Mapping[str, Any] | None = None,
    teachers: Mapping[str, str | Mapping[str, Any]] | None = None,
    student: str = MODEL,
    domains: Mapping[str, Sequence[str] | str] | None = None,
    translator: TranslatorKind = "lconv",
    layers: Mapping[str, Sequence[int]] | None = None,
    frame_rates: Mapping[str, float] | None = None,
    teacher_weights: Mapping[str, float] | None = None,
    loss: Literal["l1", "l2", "barlow", "usad"] = "l1",
    routing: Routing | None = None,
    soft_by: Literal["classifier", "confidence"] | None = None,
    sharpness: float | None = None,
    normalise: Literal["teacher", "batch"] | None = None,
    standardise: Standardise = "none",
    drop: float = 0.0,
    merge: Mapping[str, Any] | None = None,
    weighting: Literal["sum", "uncertainty", "gradnorm", "loss-ratio", "pcgrad"] = "sum",
    epochs: int = 12,
    steps: int | None = None,
    batch_size: int = 24,
    micro_batches: int = 1,
    learning_rate: float = 2e-4,
    seed: Seed = 0,
) -> Recipe:
    """A student of speech and music; `teachers.NAME` are networks by name, `data.manifest` names the clips.

    `routing` is that of the method: hard, in `translate-soft` soft, and in `merge` all, where it says which rows teach
    each single student (hard: those of its domain). `merge` has the fields of `MergeConfig`, with a teacher's name for
    the weight of its student; default: equal weights.

    Raises:
        SettingError: there is no such method, or no teacher, or settings contradict the method or each other.
        RecipeError: a setting of the data, the method or the merge is invalid.
    """
    networks = _teachers(method, teachers or {})
    config = NetworkConfig.model_validate(student)
    of_method: dict[str, Any] = {"translator": translator, "layers": layers, "frame_rates": frame_rates, "loss": loss}
    of_method |= {"teacher_weights": teacher_weights, "soft_by": soft_by, "sharpness": sharpness, "drop": drop}
    of_method |= {"normalise": normalise, "standardise": standardise}
    of_method["routing"] = _routing(method, routing, {"soft_by": soft_by, "sharpness": sharpness}, normalise)
    settings = _method(tuple(networks), domains or {}, of_method)
    plain: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "micro_batches": micro_batches}
    stage = partial(_stage, **plain, optimizer=optimizer(epochs, learning_rate), weighting=weighting)
    stages = METHODS[method](settings, tuple(networks), stage)
    if method == MERGE:
        stages = (*stages[:-1], stages[-1].model_copy(update={"merge": _merged(merge or {}, tuple(networks))}))
        networks |= _singles(config, networks)
    elif merge is not None:
        raise SettingError(f"{DATA}/{method} merges no students, so it takes no `merge`; take {DATA}/{MERGE}")
    return Recipe.model_validate(
        {
            "name": f"{DATA}/{method}",
            "data": _data(data or {}),
            "student": config,
            "student_name": STUDENT,
            "teachers": networks,
            "stages": stages,
            "method": MERGE if method == MERGE else None,
            "seed": seed,
        }
    )


def single(teacher: str) -> str:
    """The name of the student of one teacher, among the members of `merge`."""
    return f"{STUDENT}-{teacher}"


def _singles(student: NetworkConfig, teachers: Mapping[str, NetworkConfig]) -> dict[str, NetworkConfig]:
    if len(teachers) < 2:
        raise SettingError(f"{DATA}/{MERGE} merges students of two teachers or more; it has {', '.join(teachers)}")
    taken = [name for name in teachers if single(name) in teachers]
    if taken:
        raise SettingError(
            f"{DATA}/{MERGE}: {single(taken[0])!r} is the name of the student of {taken[0]!r}; give the teacher another"
        )
    # Of a teacher, no weights would train by default. Settings of the student that come later reach these copies too.
    return {single(name): student.whole for name in teachers}


def _merged(settings: Mapping[str, Any], teachers: Sequence[str]) -> MergeConfig:
    weights = settings.get("weights", dict.fromkeys(teachers, 1 / len(teachers)))
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in teachers:
            raise SettingError(f"merge.weights: no teacher is called {name!r}; {nearest(name, teachers)}")
    missing = [name for name in teachers if isinstance(weights, Mapping) and name not in weights]
    if missing:
        raise SettingError(f"merge.weights has none for the student of {missing[0]!r}; give 0 to leave it out")
    named = {single(name): weights[name] for name in teachers} if isinstance(weights, Mapping) else weights
    return _checked(MergeConfig, {**settings, "weights": named}, "merge")


def _routing(method: str, chosen: Routing | None, of_soft: Mapping[str, object], normalise: str | None) -> Routing:
    """The routing of a recipe; `of_soft` are settings that soft routing alone reads. None: a setting is not given.

    Raises:
        SettingError: settings contradict each other or the method.
    """
    usual: Mapping[str, Routing] = {"translate-soft": "soft", MERGE: "all"}
    routing = chosen or usual.get(method, "hard")
    if method == "translate-soft" and routing != "soft":
        raise SettingError(f"{DATA}/{method} has routing=soft; for routing={routing} take {DATA}/translate")
    if method == MERGE and routing == "soft":
        raise SettingError(
            f"{DATA}/{method}: a student of one teacher has nothing to weigh; take routing=all or routing=hard"
        )
    useless = [name for name, value in of_soft.items() if value is not None and routing != "soft"]
    if useless:
        raise SettingError(f"{useless[0]}: soft routing alone reads it, and routing is {routing}; set routing=soft")
    if normalise == "teacher" and routing == "soft":
        raise SettingError(
            "normalise=teacher: with routing=soft, rows belong to no single teacher, and losses are divided by all "
            "rows of a step; leave normalise out"
        )
    return routing


def _method(
    teachers: Sequence[str], domains: Mapping[str, Sequence[str] | str], settings: Mapping[str, Any]
) -> MultiDistillation:
    """The method for these teachers; in a hybrid, those of music have convolutions, or without any all but the first.

    They are named even so: a stage of some of the teachers has another first one.
    """
    taught = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in domains.items()}
    music = tuple(name for name in teachers if "music" in taught.get(name, (name,)))
    chosen = {name: value for name, value in settings.items() if value is not None}
    if settings["translator"] == "hybrid" and not music:
        music = tuple(teachers)[1:]
    return MultiDistillation.model_validate({**chosen, "domains": taught, "convolution": music or None})


def _stage(name: str, method: MultiDistillation, teachers: Sequence[str], **settings: Any) -> Stage:
    return Stage.model_validate(
        {"name": name, "method": method, "teachers": tuple(teachers), "clip_norm": 5.0, **settings}
    )


def _teachers(method: str, teachers: Mapping[str, str | Mapping[str, Any]]) -> dict[str, NetworkConfig]:
    if method not in METHODS:
        raise SettingError(f"no method of {DATA} is called {method!r}; {nearest(method, METHODS)}")
    if not teachers:
        raise SettingError(
            f"{DATA}/{method} needs teachers: --set teachers.speech=transformers:FOLDER "
            "--set teachers.music=transformers:FOLDER"
        )
    return {name: _teacher(network) for name, network in teachers.items()}


def _teacher(settings: str | Mapping[str, Any]) -> NetworkConfig:
    network = NetworkConfig.model_validate(settings)
    # Its hidden states alone are read, so no head is needed.
    return network if network.tune is not None else network.model_copy(update={"tune": "frozen"})


def _data(settings: Mapping[str, Any]) -> Any:
    return _checked(find_data(DATA), {"name": DATA, **settings}, "data")


def _checked(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(DATA, [f"{where}.{text}" for text in sentences(error, kind, values)]) from error


def _alone(method: MultiDistillation, teacher: str, teachers: Sequence[str]) -> MultiDistillation:
    """The settings of a student of one teacher: rows of all domains teach it, or with hard routing those of its own."""
    if method.translator in ("shared", "half"):
        raise SettingError(
            f"{DATA}/{MERGE}: translator={method.translator} divides one student among several teachers, and students "
            "have one teacher each here; take mlp or lconv"
        )
    if method.routing == "all":
        return _only(method, [teacher]).model_copy(update={"routing": "all"})
    domains = {name: method.domains.get(name, (name,)) for name in teachers}
    others = (domain for name in teachers for domain in domains[name] if domain not in domains[teacher])
    return _only(method, [teacher]).model_copy(update={"routing": "hard", "untaught": tuple(dict.fromkeys(others))})


def _only(method: MultiDistillation, teachers: Sequence[str]) -> MultiDistillation:
    """The settings for these teachers; a single teacher learns from rows of all domains unless it has its own."""
    mappings = ("domains", "layers", "frame_rates", "teacher_weights", "student_heads", "losses")
    kept: dict[str, Any] = {
        name: {key: value for key, value in getattr(method, name).items() if key in teachers or key == "student"}
        for name in mappings
    }
    if method.convolution is not None:
        kept["convolution"] = tuple(name for name in method.convolution if name in teachers)
    alone = len(teachers) == 1 and teachers[0] not in method.domains
    return method.model_copy(update={**kept, **({"routing": "all"} if alone else {})})

"""Speech and music: one student from teachers of several domains, without labels (arXiv 2506.07237).

    crossdistill run speech-music/translate --set data.manifest=clips.csv \
        --set teachers.speech=transformers:HUBERT --set teachers.music=transformers:MERT

A teacher's name is the domain whose rows it teaches, unless `domains.NAME` says otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from crossdistill.data import find_data
from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.methods.multi_distillation import MultiDistillation
from crossdistill.nets.feature_translators import TranslatorKind
from crossdistill.overrides import sentences
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes.setup import Seed
from crossdistill.stage import OptimizerConfig, Stage

DATA, STUDENT = "speech-music", "hubert-student-2"
WARM_UP = 0.07
"""Share of the steps; the published warm-up is 14,000 of 200,000."""
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
    return (stage("translate", method.model_copy(update={"routing": "soft"}), teachers),)


def _second(method: MultiDistillation, teachers: Sequence[str], stage: Callable[..., Stage]) -> tuple[Stage, ...]:
    """All teachers but the last; then the last one, a supervised encoder such as Whisper's (USAD 2.0)."""
    if len(teachers) < 2:
        raise SettingError(
            f"{DATA}/second-stage needs the teachers of the first stage and one of the second, and has "
            f"{', '.join(teachers) or 'none'}; add --set teachers.NAME=transformers:FOLDER"
        )
    *first, last = teachers
    return (
        stage("translate", _only(method, first), first),
        stage("second", _only(method, [last]), [last]),
    )


METHODS: Mapping[str, Make] = {"translate": _translate, "translate-soft": _soft, "second-stage": _second}
"""The recipes of this family, by name."""


def speech_music(
    method: str,
    *,
    data: Mapping[str, Any] | None = None,
    teachers: Mapping[str, str | Mapping[str, Any]] | None = None,
    student: str = STUDENT,
    domains: Mapping[str, Sequence[str] | str] | None = None,
    translator: TranslatorKind = "lconv",
    layers: Mapping[str, Sequence[int]] | None = None,
    frame_rates: Mapping[str, float] | None = None,
    teacher_weights: Mapping[str, float] | None = None,
    loss: Literal["l1", "l2", "barlow", "usad"] = "l1",
    weighting: Literal["sum", "uncertainty", "gradnorm", "loss-ratio", "pcgrad"] = "sum",
    epochs: int = 12,
    steps: int | None = None,
    batch_size: int = 24,
    micro_batches: int = 1,
    learning_rate: float = 2e-4,
    seed: Seed = 0,
) -> Recipe:
    """A student of speech and music; `teachers.NAME` are networks by name, `data.manifest` names the clips.

    Raises:
        SettingError: there is no such method, or no teacher.
        RecipeError: a setting of the data is invalid.
    """
    if method not in METHODS:
        raise SettingError(f"no method of {DATA} is called {method!r}; {nearest(method, METHODS)}")
    if not teachers:
        raise SettingError(
            f"{DATA}/{method} needs teachers: --set teachers.speech=transformers:FOLDER "
            "--set teachers.music=transformers:FOLDER"
        )
    networks = {name: _teacher(given) for name, given in teachers.items()}
    given = {"layers": layers, "frame_rates": frame_rates, "teacher_weights": teacher_weights}
    settings = _method(tuple(networks), domains or {}, translator=translator, loss=loss, **given)
    plain: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "micro_batches": micro_batches}
    stage = partial(_stage, **plain, optimizer=optimizer(epochs, learning_rate), weighting=weighting)
    return Recipe.model_validate(
        {
            "name": f"{DATA}/{method}",
            "data": _data(data or {}),
            "student": NetworkConfig.model_validate(student),
            "student_name": "student",
            "teachers": networks,
            "stages": METHODS[method](settings, tuple(networks), stage),
            "seed": seed,
        }
    )


def _method(teachers: Sequence[str], domains: Mapping[str, Sequence[str] | str], **settings: Any) -> MultiDistillation:
    """The method for these teachers; in a hybrid, those of music have convolutions."""
    own = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in domains.items()}
    music = tuple(name for name in teachers if "music" in own.get(name, (name,)))
    given = {name: value for name, value in settings.items() if value is not None}
    return MultiDistillation.model_validate({**given, "domains": own, "convolution": music or None})


def _stage(name: str, method: MultiDistillation, teachers: Sequence[str], **settings: Any) -> Stage:
    return Stage.model_validate(
        {"name": name, "method": method, "teachers": tuple(teachers), "clip_norm": 5.0, **settings}
    )


def _teacher(given: str | Mapping[str, Any]) -> NetworkConfig:
    network = NetworkConfig.model_validate(given)
    # Its hidden states alone are read, so no head is needed.
    return network if network.tune is not None else network.model_copy(update={"tune": "frozen"})


def _data(settings: Mapping[str, Any]) -> Any:
    try:
        return find_data(DATA).model_validate({"name": DATA, **settings})
    except ValidationError as error:
        raise RecipeError(DATA, [f"data.{text}" for text in sentences(error)]) from error


def _only(method: MultiDistillation, teachers: Sequence[str]) -> MultiDistillation:
    """The settings for these teachers; a single teacher learns from rows of all domains unless it has its own."""
    mappings = ("domains", "layers", "frame_rates", "teacher_weights")
    kept: dict[str, Any] = {
        name: {key: value for key, value in getattr(method, name).items() if key in teachers or key == "student"}
        for name in mappings
    }
    kept["convolution"] = tuple(name for name in method.convolution or () if name in teachers)
    alone = len(teachers) == 1 and teachers[0] not in method.domains
    return method.model_copy(update={**kept, **({"routing": "all"} if alone else {})})

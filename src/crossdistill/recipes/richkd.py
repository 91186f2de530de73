"""Recipes of RichKD: a teacher `cnn` that was trained on the data, and a vision-language model `clip`, fused.

crossdistill run folder/richkd-l --set data.path=pictures --set teachers.clip=transformers:FOLDER
crossdistill run folder/richkd --set data.path=pictures --set teachers.cnn=RUN --set teachers.clip=transformers:FOLDER
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossdistill.backends.names import backend_of
from crossdistill.methods.richkd import RichKD, RichKDConfig, RichKDF, RichKDL
from crossdistill.network import Network
from crossdistill.recipe import NetworkConfig
from crossdistill.recipes.parts import Difference, MethodPlan, Stages, from_labels, stage_of
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.stage import Stage

CNN, CLIP = "cnn", "clip"
"""Names of the teacher that knows the data, and of the one that compares pictures with texts."""
DEFAULT_CNN = "cifar-resnet20"
"""The teacher `cnn` of pictures where none is named; it is trained from labels."""
RELEASE_COMPAT: Mapping[str, Any] = {
    "logit_scale": 1.0,
    "ensemble": "embedding",
    "clean_names": False,
    "articles": False,
}
"""Settings of `clip` as in the released code: raw cosines, and names of classes as they are."""


def fused(kind: type[RichKDConfig], **settings: Any) -> Stages:
    """Teachers from labels, as far as they train; then a stage in which the student learns from the fused ones."""

    def stages(setup: ExperimentSetup, student: str, teachers: Sequence[str]) -> tuple[Stage, ...]:
        method = kind(main=CNN if CNN in teachers else None, **settings)
        return (
            *from_labels(setup, teachers),
            stage_of(method.name, method, setup, setup.distil, teachers=tuple(teachers)),
        )

    stages.__doc__ = kind.__doc__
    return stages


def with_default_cnn(
    method: str, teachers: Mapping[str, str | Mapping[str, Any]]
) -> Mapping[str, str | Mapping[str, Any]]:
    """The named teachers of a method, with a `cnn` for RichKD where only a `clip` is named."""
    if method not in RICHKD or CNN in teachers or CLIP not in teachers:
        return teachers
    return {CNN: DEFAULT_CNN, **teachers}


def as_released(setup: ExperimentSetup) -> dict[str, NetworkConfig | Network]:
    """The setup's `clip` with the settings of the released code, as far as its name does not set them."""
    clip = setup.named_teachers.get(CLIP)
    if not isinstance(clip, NetworkConfig) or backend_of(clip.model) not in ("transformers", "open_clip"):
        return {}
    return {CLIP: clip.model_copy(update={"options": {**RELEASE_COMPAT, **clip.options}})}


def _differs(name: str, *, draws: bool) -> tuple[Difference, ...]:
    """Differences of a preset from the paper and the defaults; `draws`: it has a memory."""
    own = Difference(f"{name}.draw", "each", "shared", "its sampler draws the negatives of each row by themselves")
    return (
        Difference(f"{CLIP}.logit_scale", 1.0, "the model's own", "its cache holds cosines without exp(scale)"),
        Difference(f"{CLIP}.clean_names", False, True, "it formats the names of classes as torchvision gives them"),
        Difference(f"{CLIP}.articles", False, True, "every template says 'a', as in 'a photo of a apple'"),
        Difference(f"{name} coefficient of embeddings", "alpha", "its own", "the code uses alpha for both fusions"),
        *((own,) if draws else ()),
    )


RICHKD: Mapping[str, MethodPlan] = {
    "richkd": MethodPlan(
        fused(RichKD),
        "mm+cm",
        described="Logits and embeddings of a teacher and a vision-language model, fused (RichKD, 2511.09286).",
    ),
    "richkd-release": MethodPlan(
        fused(RichKD, draw="each"),
        "mm+cm",
        described="RichKD as in the released code (release_compat): unscaled cosines.",
        differs=_differs("richkd", draws=True),
        added=as_released,
    ),
    "richkd-f": MethodPlan(fused(RichKDF), "mm+cm", described="RichKD on embeddings alone."),
    "richkd-f-release": MethodPlan(
        fused(RichKDF, draw="each"),
        "mm+cm",
        described="RichKD on embeddings alone, as in the released code (release_compat).",
        differs=_differs("richkd-f", draws=True),
        added=as_released,
    ),
    "richkd-l": MethodPlan(fused(RichKDL), "mm+cm", described="RichKD on logits alone."),
    "richkd-l-release": MethodPlan(
        fused(RichKDL),
        "mm+cm",
        described="RichKD on logits alone, as in the released code (release_compat): unscaled cosines.",
        differs=_differs("richkd-l", draws=False),
        added=as_released,
    ),
}
"""Plans of RichKD, each with the preset `release_compat`."""

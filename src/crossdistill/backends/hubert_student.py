"""The student of speech and music: HuBERT of few blocks, as the student of DistilHuBERT, initialised from a teacher."""

from collections.abc import Mapping
from typing import Any

import torch

from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.transformers import load, needed
from crossdistill.backends.transformers_body import with_kind
from crossdistill.errors import SettingError

PREFIX = "transformers:"
COPIED_WHOLE = ("feature_extractor.", "feature_projection.projection.", "encoder.pos_conv_embed.")
"""Parts whose weights a student needs all, so that a teacher with more of them has another architecture."""
NORM = "encoder.layer_norm."
ALIKE = (
    "hidden_size",
    "conv_kernel",
    "conv_stride",
    "feat_extract_norm",
    "do_stable_layer_norm",
    "num_attention_heads",
)
"""Settings that have to be equal for copied weights to compute the same."""


def hubert_student(
    layers: int = 2, classes: int = 0, width: int = 768, initial: str | None = None, initial_norm: bool = True
) -> Pretrained:
    """HuBERT of so many blocks without a normalisation before the projection; it has no logits (Chang et al. 2022).

    It gives the embedding (B, width), the mean over valid frames, and the taps layer1, ... (B, T, width), one frame for
    320 samples. `classes` is not used. `initial` is `transformers:FOLDER` of a HuBERT, wav2vec 2.0 or WavLM of equal
    width: its convolutions, projection, positional convolution, first blocks and, unless `initial_norm` is False, the
    normalisation before the blocks are copied; DistilHuBERT leaves the last one random. WavLM's relative positions,
    which HuBERT lacks, are not copied.

    Raises:
        SettingError: the width is no multiple of 64, or the teacher has another width or architecture.
        MissingExtraError: transformers is not installed.
    """
    if width < 64 or width % 64:
        raise SettingError(f"hubert-student: width: wanted a multiple of 64, as heads are 64 wide; found {width}")
    transformers = needed()
    config = transformers.HubertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        feat_proj_layer_norm=False,
        feat_extract_norm="group",
        conv_bias=False,
        do_stable_layer_norm=False,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )
    model = transformers.HubertModel(config)
    if initial is not None:
        _copy(model, initial, initial_norm)
    return Pretrained(with_kind(model, "audio", classifier=False, pooled=False))


def _copy(student: Any, initial: str, norm: bool) -> None:
    who = f"hubert-student: initial={initial}"
    if not initial.startswith(PREFIX):
        raise SettingError(f"{who}: wanted {PREFIX}FOLDER")
    teacher: Any = load(initial.removeprefix(PREFIX), {}).body.model
    teacher = getattr(teacher, str(getattr(teacher, "base_model_prefix", "")), teacher)
    for name in ALIKE:
        wanted, found = getattr(student.config, name), getattr(teacher.config, name, None)
        if (list(found) if isinstance(found, tuple | list) else found) != (
            list(wanted) if isinstance(wanted, tuple | list) else wanted
        ):
            raise SettingError(
                f"{who}: its {name} is {found}, and the student's is {wanted}, so its weights do not fit; take another "
                "teacher" + (", or set options.width" if name == "hidden_size" else "")
            )
    own, given = student.state_dict(), teacher.state_dict()
    _check(own, given, who)
    with torch.no_grad():
        for name, value in own.items():
            if norm or not name.startswith(NORM):
                value.copy_(given[name])


def _check(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], who: str) -> None:
    more = [name for name in given if name.startswith(COPIED_WHOLE) and name not in own]
    unfit = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if more or unfit:
        raise SettingError(
            f"{who}: it is no HuBERT of this shape with as many blocks: the weights {(unfit or more)[0]!r} "
            f"{'are missing or have another shape' if unfit else 'have no place in the student'}"
        )

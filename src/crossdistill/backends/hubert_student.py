"""The student of speech and music: HuBERT of few blocks, as the student of DistilHuBERT, initialised from a teacher."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "feat_extract_norm",
    "do_stable_layer_norm",
    "num_attention_heads",
)
"""Settings that have to be equal for copied weights to compute the same."""
OPTIONS = {"hidden_size": ", or set options.width", "conv_dim": ", or set options.channels"}
"""What else can be done about a setting that differs."""


def hubert_student(
    layers: int = 2,
    classes: int = 0,
    width: int = 768,
    initial: str | None = None,
    initial_norm: bool = True,
    feature_grad_mult: float = 0.1,
    channels: int = 512,
    *,
    head_width: int = 64,
    expansion: int = 4,
) -> Pretrained:
    """HuBERT of so many blocks without a normalisation before the projection; it has no logits (Chang et al. 2022).

    It gives the embedding (B, width), the mean over valid frames, and the taps projection, what the positional
    convolution reads, and layer1, ... (B, T, width), one frame for 320 samples. `channels` is the width of the
    convolutions. `classes` is not used. `initial` is `transformers:FOLDER` of a HuBERT, wav2vec 2.0 or WavLM of equal
    width and channels: its convolutions, projection, positional convolution, first blocks and, unless `initial_norm` is
    False, the normalisation before the blocks are copied; DistilHuBERT leaves the last one random. WavLM's relative
    positions, which HuBERT lacks, are not copied. `feature_grad_mult` scales the gradient that reaches the
    convolutions, as DistilHuBERT does. The table of models sets `head_width`, the width of an attention head, and
    `expansion`, of feed-forward layers by the blocks' width.

    Raises:
        SettingError: the width does not divide into heads, there is no channel, the teacher has another width or
            architecture, or the factor of gradients is negative or not finite.
        MissingExtraError: transformers is not installed.
    """
    if width < head_width or width % head_width:
        raise SettingError(
            f"hubert-student: width: wanted a multiple of {head_width}, as heads are {head_width} wide; found {width}"
        )
    if channels < 1:
        raise SettingError(f"hubert-student: channels: wanted 1 or more, found {channels}")
    if not 0 <= feature_grad_mult < math.inf:
        raise SettingError(
            f"hubert-student: feature_grad_mult: wanted a finite factor of 0 or more, found {feature_grad_mult}"
        )
    transformers = needed()
    config = transformers.HubertConfig(
        hidden_size=width,
        conv_dim=(channels,) * 7,
        num_hidden_layers=layers,
        num_attention_heads=width // head_width,
        intermediate_size=expansion * width,
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
    if feature_grad_mult != 1:
        model.feature_extractor.register_forward_hook(ScaledGradient(feature_grad_mult))
    body = with_kind(model, "audio", classifier=False, pooled=False)
    body.taps_projection = True
    return Pretrained(body)


class ScaledGradient:
    """A forward hook that leaves a module's output as it is, and multiplies the gradient that reaches it."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, _module: nn.Module, _arguments: Any, result: Tensor) -> Tensor:
        """The output itself."""
        # PyTorch leaves this method without annotations.
        scaled: Tensor = _Scaled.apply(result, self.factor)  # type: ignore[no-untyped-call]
        return scaled


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, factor: float) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


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
                f"teacher{OPTIONS.get(name, '')}"
            )
    own, given = student.state_dict(), teacher.state_dict()
    _check(own, given, who)
    with torch.no_grad():
        for name, value in own.items():
            if norm or not name.startswith(NORM):
                value.copy_(given[name])


def _check(own: Mapping[str, Tensor], given: Mapping[str, Tensor], who: str) -> None:
    more = [name for name in given if name.startswith(COPIED_WHOLE) and name not in own]
    unfit = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if more or unfit:
        raise SettingError(
            f"{who}: it is no HuBERT of this shape with as many blocks: the weights {(unfit or more)[0]!r} "
            f"{'are missing or have another shape' if unfit else 'have no place in the student'}"
        )

"""The picture side of CLIP models of open_clip, by `NAME/WEIGHTS` such as `ViT-B-32/laion2b_s34b_b79k`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.pretrained import Body, Kind, Loaded, blocks_of
from crossdistill.backends.processors import own_rendering
from crossdistill.backends.prompts import NAMES, settings_of
from crossdistill.backends.text_head import TextSide, in_passes
from crossdistill.backends.timm import needed
from crossdistill.data.rendering import PictureRendering
from crossdistill.errors import SettingError, nearest

OPTIONS = ("rendering", "weights", *NAMES)


def load(source: str, options: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> Loaded:
    """A model by name and weights; `NAME` alone has random weights, and a file's path may be given as `weights`.

    Options: those of `ZeroShot`; `rendering` replaces the preparation of pictures; `weights` is a safetensors file.

    Raises:
        SettingError: no such model, weights or option.
        MissingExtraError: open_clip is not installed, or cannot be imported beside this torch.
    """
    open_clip = needed("open_clip", "clip")
    who = f"open_clip:{source}"
    name, _, tag = source.partition("/") if ":" not in source else (source, "", "")
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise SettingError(f"{who} has no option {unknown[0]!r}; {nearest(unknown[0], OPTIONS)}")
    if ":" not in source and name not in open_clip.list_models():
        raise SettingError(f"open_clip has no model {name!r}; {nearest(name, open_clip.list_models())}")
    weights = options.get("weights") or tag or None
    if weights and str(weights).endswith((".pt", ".pth", ".bin")):
        raise SettingError(f"{who}: {weights} is pickled, which is never read; wanted a safetensors file")
    try:
        model = open_clip.create_model(name, pretrained=weights, precision="fp32")
    except Exception as error:  # open_clip and the hub's client raise errors of several packages
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SettingError(f"{who} cannot be built: {said}") from error
    body = OpenClipBody(model.eval()).to(dtype)
    own = options.get("rendering")
    return Loaded(
        body=body,
        kind="image",
        rendering=_rendering(model) if own is None else own_rendering(own, who),
        classes=None,
        named=False,
        pretrained=weights is not None or ":" in source,
        text=lambda: _text_side(open_clip, model, name, who),
        zero_shot=settings_of(options, who),
    )


def modality_of(source: str, options: Mapping[str, Any]) -> Kind:
    """The kind of input: pictures."""
    return "image"


class OpenClipBody(Body):
    """The picture side of a CLIP model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual: nn.Module = model.visual
        with torch.no_grad():
            size = model.visual.image_size
            shape = (size, size) if isinstance(size, int) else tuple(size)
            self.width = int(model.visual.eval()(torch.zeros(1, 3, *shape)).shape[-1])

    def layers(self) -> list[nn.Module]:
        """See `Body`."""
        return blocks_of(self.visual)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        """The embedding in the space that pictures and texts share."""
        return {"embedding": self.visual(values)}


def _text_side(open_clip: Any, model: Any, name: str, who: str) -> TextSide:
    """The text side, with the tokenizer that open_clip names for the model."""
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip and the hub's client raise errors of several packages
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SettingError(f"{who}: its tokenizer cannot be had: {said}; zero_shot=false needs none") from error

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        tokens = torch.as_tensor(tokenizer(list(texts)))
        return in_passes(lambda rows: model.encode_text(tokens[rows]).float(), *tokens.shape)

    return TextSide.of(model, encode)


def _rendering(model: Any) -> PictureRendering:
    config = dict(getattr(model.visual, "preprocess_cfg", None) or {})
    size = config.get("size", model.visual.image_size)
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    mode = config.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise SettingError(f"open_clip: the preparation {mode!r} is no rendering; give options.rendering")
    return PictureRendering(
        size=(height, width),
        shortest=max(height, width) if mode == "shortest" else None,
        interpolation="bicubic" if config.get("interpolation", "bicubic") == "bicubic" else "bilinear",
        rounded=True,
        mean=tuple(config.get("mean", (0.48145466, 0.4578275, 0.40821073))),
        deviation=tuple(config.get("std", (0.26862954, 0.26130258, 0.27577711))),
    )

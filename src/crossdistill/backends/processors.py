"""Configurations of processors (`preprocessor_config.json`, tokenizers) as renderings, without running their code."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crossdistill.data.rendering import PictureRendering, SoundRendering, TextRendering
from crossdistill.errors import DataError, SettingError
from crossdistill.overrides import sentences
from crossdistill.runtime.files import file_fault

INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of interpolations."""
UNSUPPORTED = (
    *("do_pad", "do_thumbnail", "do_align_long_axis", "do_rotate_crop", "do_image_splitting", "do_flip_channel_order"),
    *("do_reduce_labels", "do_crop_margin", "do_color_quantize", "size_divisor", "do_grayscale", "do_pan_and_scan"),
)
"""Steps of image processors for which no rendering exists."""
SHORTEST = ("CLIP", "ConvNext", "ChineseCLIP", "LeViT", "PoolFormer", "MobileNet", "Bit", "Dinov2")
"""Processors whose single number `size` is the shorter side; that of the others is both sides."""
MOST_BYTES = 2**24


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        DataError: the file is missing, too large, or holds something else; names it.
    """
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: has {path.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: wanted an object, found a {type(found).__name__}")
    return found


def processor_config(folder: Path) -> dict[str, Any] | None:
    """The settings of a folder's image processor or feature extractor; None where it has none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if file_fault(folder / name) is None:
            found = read_json(folder / name)
            for inner in ("image_processor", "feature_extractor"):
                found = found.get(inner, found) if isinstance(found.get(inner), dict) else found
            return found
    return None


def picture_rendering(config: Mapping[str, Any], who: str, channels: int = 3) -> PictureRendering:
    """An image processor's settings as a rendering.

    Raises:
        SettingError: it has a step for which no rendering exists; names it.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "an image processor")
    steps = [step for step in UNSUPPORTED if config.get(step)]
    if steps:
        raise _refused(who, kind, f"{', '.join(steps)} is set, which no rendering does")
    if config.get("resample", 2) not in INTERPOLATIONS:
        raise _refused(who, kind, f"it resizes by Pillow's interpolation {config['resample']!r}")
    size, shortest = _sides(config.get("size"), kind, who)
    if kind.startswith("Siglip2") and config.get("max_num_patches"):
        # Its processor keeps proportions; a square is what it makes of a square picture.
        side = math.isqrt(int(config["max_num_patches"])) * int(config.get("patch_size", 16))
        size, shortest = (side, side), None
    crop = _sides(config.get("crop_size"), kind, who)[0] if config.get("do_center_crop") else None
    if config.get("do_resize") is False:
        size, shortest = None, None
    if "crop_pct" in config and config["crop_pct"] and shortest and shortest < 384:
        # ConvNext's processor enlarges by 1 / crop_pct, then keeps the middle.
        crop, shortest = (shortest, shortest), int(shortest / float(config["crop_pct"]))
    elif "crop_pct" in config and shortest:
        size, shortest = (shortest, shortest), None
    both_sides = size is not None and crop is not None and size != crop
    if size is not None and crop is not None and both_sides:
        if size[0] != size[1] or size[0] < max(crop):
            raise _refused(who, kind, f"it resizes to {size} and keeps {crop}")
        size, shortest = crop, size[0]
    result = crop or size
    if result is None:
        raise _refused(who, kind, "the size of its result differs from picture to picture")
    normalised = config.get("do_normalize", True)
    rescaled = config.get("do_rescale", True)
    return _checked(
        who,
        size=result,
        shortest=shortest,
        both_sides=both_sides,
        interpolation=INTERPOLATIONS[config.get("resample", 2)],
        rounded=True,
        rescale=config.get("rescale_factor", 1 / 255) if rescaled else 1.0,
        mean=_numbers(config.get("image_mean") if normalised else None, channels),
        deviation=_numbers(config.get("image_std") if normalised else None, channels),
        channels=channels,
    )


def sound_rendering(config: Mapping[str, Any], who: str, seconds: float | None = None) -> SoundRendering:
    """A feature extractor's settings as waves at its rate, without `seconds` as long as the recording.

    Spectrograms, and the window of those that have one, are a part of the network (`frontends`).

    Raises:
        SettingError: it names no rate.
    """
    rate = config.get("sampling_rate")
    if not isinstance(rate, int):
        kind = config.get("feature_extractor_type", "its feature extractor")
        raise SettingError(f"{who}: {kind} has no sampling_rate; give options.rendering")
    kind = str(config.get("feature_extractor_type", ""))
    whole = config.get("do_normalize", True) and not kind.startswith(("Whisper", "AST"))
    return SoundRendering(
        rate=rate, kind="wave", seconds=seconds, align="start", normalise="example" if whole else "none"
    )


def sound_processor(rendering: SoundRendering, *, level: bool) -> dict[str, Any] | None:
    """The settings of a feature extractor that prepares waves as a rendering does; None: none does.

    Feature extractors subtract no mean alone: a rendering that does has one where `level` is False, for networks to
    which a constant in their input makes no difference.
    """
    if rendering.kind != "wave" or (rendering.mean, rendering.deviation) != (0.0, 1.0):
        return None
    if rendering.normalise == "mean" and level:
        return None
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": rendering.rate,
        "padding_value": 0.0,
        "do_normalize": rendering.normalise == "example",
        "return_attention_mask": True,
    }


def text_rendering(folder: Path, config: Mapping[str, Any], who: str, length: int | None = None) -> TextRendering:
    """A folder's tokenizer as a rendering; by default its longest texts have 128 tokens, or as many as it can read.

    Raises:
        SettingError: there is no `tokenizer.json`.
    """
    if file_fault(folder / "tokenizer.json") is not None:
        raise SettingError(
            f"{who}: there is no tokenizer.json in {folder}, so texts cannot be made tokens; save the tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER))"
        )
    most = config.get("max_position_embeddings", 128)
    # RoBERTa's positions begin after its padding.
    most = most - 2 if most == 514 else most
    return TextRendering(tokenizer=folder, length=length or min(128, most), pad=config.get("pad_token_id"))


def own_rendering(settings: Mapping[str, Any], who: str) -> PictureRendering:
    """A rendering of pictures from the options of a recipe."""
    return _checked(who, **settings)


def _checked(who: str, **settings: Any) -> PictureRendering:
    try:
        return PictureRendering.model_validate(settings)
    except ValidationError as error:
        raise SettingError(f"{who}: rendering: {'; '.join(sentences(error))}") from error


def _refused(who: str, kind: str, why: str) -> SettingError:
    return SettingError(
        f"{who}: {kind} cannot be written as a rendering in tensors: {why}. Give the preparation yourself: "
        "options.rendering={size: [224, 224], mean: [0.5, 0.5, 0.5], deviation: [0.5, 0.5, 0.5]}"
    )


def _sides(value: Any, kind: str, who: str) -> tuple[tuple[int, int] | None, int | None]:
    """Height and width, or the shorter side, of a `size` in any of its forms."""
    if value is None:
        return None, None
    if isinstance(value, int):
        return (None, value) if kind.startswith(SHORTEST) else ((value, value), None)
    if isinstance(value, list | tuple) and len(value) == 2:
        return (int(value[0]), int(value[1])), None
    if isinstance(value, Mapping):
        if value.get("height") and value.get("width"):
            return (int(value["height"]), int(value["width"])), None
        if value.get("shortest_edge") and not value.get("longest_edge"):
            return None, int(value["shortest_edge"])
    raise _refused(who, kind, f"its size is {value!r}")


def _numbers(value: Any, channels: int) -> tuple[float, ...]:
    if value is None:
        return ()
    numbers = tuple(float(one) for one in value) if isinstance(value, list | tuple) else (float(value),)
    return numbers if len(numbers) in (1, channels) else numbers[:1]

"""Zero-shot classifiers: networks of pictures and texts that classify by the names of the data's classes."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossdistill.backends.classes import has_names
from crossdistill.backends.pretrained import Loaded, Pretrained
from crossdistill.backends.prompts import ZeroShot
from crossdistill.backends.text_head import ClassTexts, TextSide, class_weights
from crossdistill.data.dataset import Dataset
from crossdistill.errors import SettingError
from crossdistill.runtime.hashing import key_hash

KEPT = 4
"""Encoded texts that are kept: a comparison builds the network of a folder for each of its cells."""
_ENCODED: dict[str, ClassTexts] = {}
MEANS = {"embedding": "embeddings", "logit": "logits", "probability": "probabilities"}


def class_texts(loaded: Loaded, dataset: Dataset, how: str | None, student: bool, name: str) -> ClassTexts | str:
    """The texts of the data's classes, or the reason why the network is used as an encoder (empty: nothing to say).

    By default a trained teacher classifies zero-shot unless `how` says that it trains. Any zero-shot setting asks for
    it.

    Raises:
        SettingError: it is asked for, and the network has no text side or no tokenizer, the data's classes have no
            names, or a setting is invalid.
    """
    settings = loaded.zero_shot
    if settings.zero_shot is False:
        return ""
    if settings.asked:
        _check(loaded, dataset, settings, name)
    elif not _by_default(loaded, dataset, how, student):
        return ""
    elif all(re.fullmatch(r"[\W\d_]+", one) for one in dataset.classes) or not has_names(dataset.classes):
        return (
            f"the data's classes ({', '.join(dataset.classes[:3])}, ...) are no words, so it is not used zero-shot "
            "(class_names={CLASS: WORDS} or templates make it so)"
        )
    assert loaded.text is not None
    try:
        prompts = settings.prompts(dataset.classes)
        key = key_hash([loaded.stamp, prompts, settings.model_dump(mode="json", exclude={"class_names", "templates"})])
        if key not in _ENCODED or not loaded.stamp:
            while len(_ENCODED) >= KEPT:
                del _ENCODED[next(iter(_ENCODED))]
            _ENCODED[key] = _texts(loaded.text(), prompts, settings)
        if dataset.task == "multi-label" and not _ENCODED[key].sigmoid:
            raise SettingError(
                f"{name}: it was trained with a softmax, which finds one class a picture, and rows have several; "
                "a SigLIP folder has a probability for each label, or tune=head trains a last layer"
            )
    except SettingError as error:
        raise error if name in str(error) else SettingError(f"{name}: {error}") from error
    return _ENCODED[key]


def _by_default(loaded: Loaded, dataset: Dataset, how: str | None, student: bool) -> bool:
    frozen = not student and how in (None, "frozen") and loaded.pretrained
    return frozen and loaded.text is not None and dataset.task == "classes" and bool(dataset.classes)


def _texts(side: TextSide, prompts: Sequence[Sequence[str]], settings: ZeroShot) -> ClassTexts:
    scale = side.scale if settings.logit_scale is None else settings.logit_scale
    bias = side.bias if settings.logit_bias is None else settings.logit_bias
    weight = class_weights(_encoded(side, prompts), settings.ensemble) * scale
    own = "its own scale" if settings.logit_scale is None else f"its own scale is {side.scale:.4g}"
    many = f"{len(prompts)} templates" if len(prompts) > 1 else "1 template"
    average = f", mean of {MEANS[settings.ensemble]}" if len(prompts) > 1 else ""
    trained = "; it was trained with a sigmoid, one yes or no a class" if side.sigmoid else ""
    added = f" {bias:+.4g}" if bias else ""
    return ClassTexts(
        weight,
        bias if side.sigmoid or bias else None,
        len(prompts) if settings.ensemble == "probability" else 1,
        side.sigmoid,
        tuple(prompts[0][:3]),
        f"zero-shot over the names of {len(prompts[0])} classes ({many}{average}, such as {prompts[0][0]!r}; cosines "
        f"times {scale:.4g}{added}, {own}{trained})",
    )


@torch.no_grad()
def _encoded(side: TextSide, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Embeddings (T, C, D); equal texts are encoded once."""
    distinct = list(dict.fromkeys(text for texts in prompts for text in texts))
    found = side.encode(distinct).float()
    place = {text: number for number, text in enumerate(distinct)}
    return found[torch.tensor([[place[text] for text in texts] for texts in prompts])]


def _check(loaded: Loaded, dataset: Dataset, settings: ZeroShot, name: str) -> None:
    asked = ", ".join(sorted(settings.model_fields_set)).replace("templates", "templates (or prompt)")
    if loaded.text is None:
        raise SettingError(
            f"{name}: {asked}: only a model of pictures and texts (CLIP, SigLIP), read by its pictures, compares them "
            f"with names of classes; this one reads {loaded.kind} alone"
        )
    if dataset.task == "regression" or not dataset.classes:
        raise SettingError(
            f"{name}: {asked}: zero-shot classification needs classes with names, and data {dataset.name!r} have none; "
            "without these settings the network is an encoder, and tune=head trains a last layer"
        )


def zero_shot_causes(module: nn.Module) -> str | None:
    """Likely causes of an accuracy at chance, in one sentence; None for a network that is no zero-shot classifier."""
    if not isinstance(module, Pretrained) or not module.examples:
        return None
    return (
        f"it classifies zero-shot by texts such as {', '.join(map(repr, module.examples))}. Likely causes: names of "
        "classes that mean nothing to its text encoder (codes, numbers, another language: give words by "
        "class_names={CLASS: WORDS}), the templates are in another language than it was trained on or do not fit the "
        "pictures (templates), its pictures are prepared otherwise than for its training (normalisation, resolution: "
        "options.rendering), their content is far from its training, or its weights are untrained. logit_scale is no "
        "cause: it does not change which class is the first"
    )

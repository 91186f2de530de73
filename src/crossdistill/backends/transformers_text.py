"""The text side of CLIP, SigLIP and SigLIP 2 of transformers: texts are made tokens as for the model's training."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.processors import read_json
from crossdistill.backends.text_head import TextSide, in_passes
from crossdistill.data.tokens import CONFIG, FILE, Tokens, read_tokenizer
from crossdistill.errors import SettingError
from crossdistill.runtime.files import file_fault

GEMMA = ("Siglip2", "Gemma")
"""Beginnings of the classes of SigLIP 2's tokenizers."""
SIGLIP = ("siglip", "siglip2")
"""Types of models that were trained on texts padded to their full length, without a mask of the padding."""


def text_side(folder: Path, who: str, read: Callable[[], nn.Module]) -> TextSide:
    """The text side of the model that `read` loads.

    Raises:
        SettingError: the folder has no `tokenizer.json`, or its tokenizer needs code.
    """
    files = _tokenizer(folder, who)
    model: Any = read().eval()
    kind, config = str(model.config.model_type), model.config.text_config
    tokenise = tokeniser(*files, kind, int(config.max_position_embeddings), config.pad_token_id)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        tokens = tokenise(texts)

        def one_pass(rows: slice) -> Tensor:
            found = model.get_text_features(**{name: value[rows] for name, value in tokens.items()})
            return torch.as_tensor(found if isinstance(found, Tensor) else found.pooler_output).float()

        return in_passes(one_pass, *tokens["input_ids"].shape)

    return TextSide.of(model, encode)


def canonical(text: str, lower: bool = True) -> str:
    """A text as SigLIP was trained on it: lower case, without ASCII punctuation, single spaces."""
    text = text.lower() if lower else text
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())


def _tokenizer(folder: Path, who: str) -> tuple[Mapping[str, Any], Tokens]:
    settings = read_json(folder / CONFIG) if file_fault(folder / CONFIG) is None else {}
    if "auto_map" in settings:
        raise SettingError(
            f"{who}: its tokenizer needs code of the folder ({settings['auto_map']}), which is never run"
        )
    if file_fault(folder / FILE) is not None:
        raise SettingError(
            f"{who}: there is no {FILE} in {folder}, so names of classes cannot be made tokens; save the tokenizer "
            "there (AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)), or use the network as an encoder "
            "(zero_shot=false), whose last layer trains"
        )
    return settings, read_tokenizer(folder)


def tokeniser(
    settings: Mapping[str, Any], tokens: Tokens, kind: str, length: int, pad: int | None
) -> Callable[[Sequence[str]], dict[str, Tensor]]:
    """A function from texts to the arguments of the text encoder, by the content of `tokenizer_config.json`.

    SigLIP reads all `length` positions, and no mask unless the tokenizer's settings name one. Others read texts as
    long as the longest, since their padding changes nothing.
    """
    own = _written(tokens, settings)
    padding = tokens.pad if own or pad is None else int(pad)
    whole = kind in SIGLIP
    # Classes of transformers pad on the left where the file says nothing; published SigLIP 2 says right.
    usual = "left" if str(settings.get("tokenizer_class")).startswith(GEMMA) else "right"
    left = whole and (settings.get("padding_side") or usual) == "left"
    masked = not whole or "attention_mask" in (settings.get("model_input_names") or ())
    change = _canonicaliser(settings, kind)

    def tokenise(texts: Sequence[str]) -> dict[str, Tensor]:
        rows = tokens.ids([change(text) for text in texts], length)
        width = length if whole else max(map(len, rows))
        ids = torch.full((len(rows), width), padding, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[number, place] = torch.tensor(row, dtype=torch.int64)
            mask[number, place] = 1
        return {"input_ids": ids, **({"attention_mask": mask} if masked else {})}

    return tokenise


def _written(tokens: Tokens, settings: Mapping[str, Any]) -> bool:
    """Whether the tokenizer's files say how it pads."""
    return settings.get("pad_token") is not None or tokens.tokenizer.padding is not None


def _canonicaliser(settings: Mapping[str, Any], kind: str) -> Callable[[str], str]:
    """What happens to a text before `tokenizer.json`, in code of transformers or of the model's training.

    A tokenizer of another class has all of it in its file.
    """
    name = str(
        settings.get("tokenizer_class") or {"siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer"}.get(kind)
    )
    if kind in SIGLIP and re.fullmatch(r"SiglipTokenizer(Fast)?", name):
        return lambda text: canonical(text, bool(settings.get("do_lower_case", True)))
    if kind in SIGLIP and name.startswith(GEMMA):
        return str.lower
    return str

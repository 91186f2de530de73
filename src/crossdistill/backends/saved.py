"""Students that are networks of other libraries: their architecture in a saved student's config, and back."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crossdistill.backends.names import BACKENDS
from crossdistill.backends.pretrained import Body, PlainModel, Pretrained
from crossdistill.backends.text_head import ClassTexts, TextHead
from crossdistill.backends.tune import add_lora
from crossdistill.data.rendering import Rendering
from crossdistill.errors import SettingError
from crossdistill.network import Network
from crossdistill.overrides import sentences


class SavedArchitecture(BaseModel):
    """The options of a saved student of another library; they may come from an untrusted file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    classes: int = Field(ge=0, le=1_000_000)
    body: dict[str, Any]
    head: int | None = Field(None, ge=1, le=1_000_000)
    order: list[int] | None = None
    logits: bool = True
    unit: bool = False
    templates: int = Field(1, ge=1, le=1_000_000)
    sigmoid: bool = False
    bias: bool = False
    lora: int | None = Field(None, ge=1, le=999)


def plain_model(network: Network, classes: Sequence[str], rendering: Rendering | None = None) -> PlainModel | None:
    """How the library opens a student's model by itself, from a plain folder; None: it cannot.

    The names of a classifier's classes are those of the data, `classes`, where its logits are in their order.
    `rendering` is the preparation of its input.
    """
    module = network.module
    if not isinstance(module, Pretrained):
        return None
    own = module.body.last() is not None and module.order is None
    return module.body.plain(classes if own else None, rendering)


def opened_by(network: Network) -> str | None:
    """The class of transformers that opens a student's folder; None: none does."""
    plain = plain_model(network, ())
    return None if plain is None else plain.opened_by


def saved_options(network: Network, classes: int, *, config: bool = True) -> dict[str, Any] | None:
    """The options from which `rebuilt` makes the architecture again; None for other networks.

    Without `config`, they lack the model's configuration, which is in a file of its own.
    """
    module = network.module
    if not isinstance(module, Pretrained) or not module.body.description():
        return None
    body = {name: value for name, value in module.body.description().items() if config or name != "config"}
    found = SavedArchitecture(
        classes=classes,
        body=body,
        head=None if module.head is None else module.head.out_features,
        order=None if module.order is None else module.order.tolist(),
        logits=module.logits,
        unit=module.unit,
        templates=module.head.templates if isinstance(module.head, TextHead) else 1,
        sigmoid=isinstance(module.head, TextHead) and module.head.sigmoid,
        bias=isinstance(module.head, TextHead) and module.head.bias is not None,
        lora=module.lora,
    )
    return found.model_dump(mode="json", exclude_defaults=True)


def is_saved_backend(name: str) -> bool:
    """Whether the model in a saved student's config is a network of another library."""
    return name in BACKENDS and name != "onnx"


def rebuilt(name: str, options: Mapping[str, Any], reads: tuple[str, ...]) -> Network:
    """The network of a saved student, with weights that are to be overwritten.

    Raises:
        SettingError: an option is invalid, or the library cannot build the architecture.
    """
    try:
        saved = SavedArchitecture.model_validate(dict(options))
    except ValidationError as error:
        raise SettingError(f"{name}: {'; '.join(sentences(error))}") from error
    body: Body = importlib.import_module(BACKENDS[name]).rebuilt(saved.body)
    texts = None
    if saved.unit and saved.head is not None:
        weight = torch.zeros(saved.head, body.width)
        texts = ClassTexts(weight, 0.0 if saved.bias else None, saved.templates, saved.sigmoid)
    own = body.last() is not None and saved.head is None
    module = Pretrained(
        body, head=None if own or saved.unit else saved.head, order=saved.order, logits=saved.logits, texts=texts
    )
    if saved.lora is not None:
        add_lora(module, saved.lora, name)
    return Network(module, reads, module.taps)

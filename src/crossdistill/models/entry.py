"""An entry of the table of models: where an architecture is, what it reads, and the names of its taps."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class Model:
    """An architecture: its import path, its default modalities, its named taps, and a description of one line."""

    source: str
    modalities: tuple[str, ...]
    taps: tuple[str, ...]
    about: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `source` that this entry determines."""
    layers: tuple[str, ...] = ()
    """The intermediate and the late layer, before their activation, that masks and hints act on by default."""
    maps: tuple[str, ...] = ()
    """The layers with spatial features, before their activation, shallow first."""
    after: Mapping[str, str | None] = field(default_factory=dict)
    """For some of `maps`, the tap of the same stage that methods read after its activation; None: no activation."""
    middle: str | None = None
    """The one tap that hints compare, as published: the second stage's output. None: they compare `layers`."""
    revision: int = 0
    """Part of the keys of stages; increased when equal options stand for other numbers than before."""

    def activated(self, layer: str) -> str:
        """The tap after the activation of a layer; the layer itself where there is none."""
        after = self.after.get(layer) or f"{layer}_relu"
        return after if after in self.taps else layer

    def make(self) -> Callable[..., nn.Module]:
        """The module's class, or the function that builds it."""
        name, _, attribute = self.source.partition(":")
        maker: Callable[..., nn.Module] = getattr(importlib.import_module(name), attribute)
        return maker

    @property
    def required(self) -> tuple[str, ...]:
        """The options without a default, besides the number of classes."""
        parameters = inspect.signature(self.make()).parameters.values()
        return tuple(
            one.name
            for one in parameters
            if one.default is one.empty
            and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
            and one.name not in ("classes", *self.fixed)
        )

    def module(self, **options: Any) -> nn.Module:
        """The bare module, freshly initialised."""
        return self.make()(**{**options, **self.fixed})

"""A network of another library as one module: its body, numbered layers as taps, its embedding, and its logits."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from crossdistill.backends.prompts import ZeroShot
from crossdistill.backends.text_head import ClassTexts, TextHead, TextSide
from crossdistill.data.dataset import Licence
from crossdistill.data.rendering import Rendering
from crossdistill.errors import SettingError, TapError

Kind = Literal["image", "audio", "text", "any"]
"""Kind of input: the name of the modality that a network reads by default."""


class TimeAxis(abc.ABC):
    """The frames at a layer whose values are not one frame after another, or go on after the end of a clip."""

    samples: int
    """Length of the window that the network reads; of longer sounds, the beginning."""

    @abc.abstractmethod
    def frames(self, lengths: Tensor) -> Tensor:
        """Valid frames (B,) of sounds of `lengths` (B,) samples, also where the layer has fewer."""

    @abc.abstractmethod
    def read(self, states: Tensor) -> Tensor:
        """The frames (B, T, D) in a layer's values (B, N, D)."""

    @abc.abstractmethod
    def write(self, states: Tensor, frames: Tensor) -> Tensor:
        """The layer's values after its frames were replaced by these."""


@dataclass(frozen=True, slots=True)
class PlainModel:
    """What the library needs beside the weights of a model."""

    config: str
    """The text of its `config.json`."""
    opened_by: str
    """The name of its class that opens such a folder."""
    processor: str | None
    """The text of its `preprocessor_config.json`; None: none describes the preparation."""


class Body(nn.Module):
    """The network of the other library behind one interface; a subclass implements `forward` and `last`."""

    width: int
    """Size of the embedding."""
    axis: TimeAxis | None = None
    """The frames at each layer, where they are not the layer's own values."""
    input_dtype: torch.dtype | None = None
    """Type in which it reads floating-point inputs; None: that of its weights."""
    replaced: str | None = None
    """Name of a new last layer that `last` would not find by itself. Attributes of instances are part of keys."""

    def last(self) -> tuple[nn.Module, str] | None:
        """The module that holds the last linear layer of a classifier, and that layer's name in it; None: no logits."""
        return None

    def layers(self) -> Sequence[nn.Module]:
        """The blocks of the network, shallow first."""
        return ()

    def frames(self, lengths: Tensor) -> Tensor | None:
        """Valid frames (B,) at each layer of sounds of `lengths` (B,) samples; None: no time axis is known."""
        return None

    def other_taps(self) -> Mapping[str, nn.Module]:
        """Modules before the blocks that are taps too, by the name of the tap."""
        return {}

    def description(self) -> dict[str, Any]:
        """Plain JSON from which the backend's `rebuilt` makes the architecture again; empty: it cannot."""
        return {}

    def plain(self, classes: Sequence[str] | None, rendering: Rendering | None) -> "PlainModel | None":
        """What the library itself needs to open the weights of `model`; None: it cannot open them alone.

        `classes` are names for a classifier's logits, in their order; None: its own names stay. `rendering` is the
        preparation of its input.
        """
        return None

    def settle(self) -> list[str]:
        """Switch off what leaves out blocks or frames at random in training; one line for each thing."""
        return []


class Pretrained(nn.Module):
    """A body, a tap for each of its layers (`layer1`, `layer2`, ..., its `blocks`), and logits over the data's classes.

    The body returns an embedding and, from a classifier, logits. `order` selects and permutes these logits: class i of
    the data is class `order[i]` of the body. A `head` computes logits from the embedding instead.
    """

    order: Tensor | None
    in_order: ClassVar[bool] = True
    """Its layers run one after another, so that a pass can end after the last one that is read: see `Network`."""
    lora: int | None = None
    """Rank of the adapters that were added."""
    still: tuple[str, ...] = ()
    """Submodules without weights that train: they stay in evaluation mode, so that their statistics stay too."""

    def __init__(
        self,
        body: Body,
        *,
        head: int | None = None,
        order: Sequence[int] | None = None,
        logits: bool = True,
        texts: ClassTexts | None = None,
    ) -> None:
        """`head` is the number of classes of a new linear layer; with `logits` False there are none.

        With `texts` the embedding has length 1, and logits compare it with texts of the classes.
        """
        super().__init__()
        self.body = body
        self.logits = logits
        others = body.other_taps()
        tapped = {**others, **{f"layer{number}": one for number, one in enumerate(body.layers(), 1)}}
        self.taps: tuple[str, ...] = tuple(tapped)
        for name, layer in tapped.items():
            tap = nn.Identity()
            self.add_module(name, tap)
            through = Through(tap) if body.axis is None or name in others else ThroughFrames(tap, body.axis)
            layer.register_forward_hook(through)
        self.head: nn.Linear | None = None
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)
        self.unit = texts is not None
        self.examples: tuple[str, ...] = ()
        if texts is not None:
            self.head, self.examples = TextHead(texts), texts.examples
        elif head is not None:
            self._give_head(head)

    def _give_head(self, classes: int) -> None:
        place = self.body.last()
        if place is None:
            self.head = nn.Linear(self.body.width, classes)
            return
        parent, name = place
        old = parent.get_submodule(name)
        if not isinstance(old, nn.Linear):
            raise SettingError(
                f"the last layer of {type(self.body).__name__}, {name!r}, is a {type(old).__name__}, not a linear one, "
                "so it cannot be replaced by one for the classes of the data"
            )
        # Its name may lead through other modules, as `classifier.dense` does.
        parent.set_submodule(name, nn.Linear(old.in_features, classes, bias=old.bias is not None))
        if self.body.last() != place:
            self.body.replaced = name

    def forward(self, *values: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """`{"embedding": (B, D), "logits": (B, C)}`, the latter where there are any."""
        found: Mapping[str, Tensor | None] = self.body(*values, **named)
        embedding, logits = found["embedding"], found.get("logits")
        if self.unit and embedding is not None:
            embedding = nn.functional.normalize(embedding.float(), dim=1)
        if self.head is not None and embedding is not None:
            logits = self.head(embedding)
        if logits is not None and self.order is not None:
            logits = logits[:, self.order]
        given = {"embedding": embedding, "logits": logits if self.logits else None}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def input_dtype(self) -> torch.dtype | None:
        """See `Body`."""
        return self.body.input_dtype

    @property
    def blocks(self) -> tuple[str, ...]:
        """The taps of its layers."""
        others = self.body.other_taps()
        return tuple(tap for tap in self.taps if tap not in others)

    def frames(self, lengths: Tensor) -> Tensor | None:
        """See `Body`."""
        return self.body.frames(lengths)

    def train(self, mode: bool = True) -> "Pretrained":
        """The training mode of all submodules but those that stay as they are."""
        super().train(mode)
        for name in self.still:
            self.get_submodule(name).eval()
        return self

    def trainable_last(self) -> list[nn.Module]:
        """The last linear layer: the head, or that of the body's classifier."""
        if self.head is not None:
            return [self.head]
        place = self.body.last()
        return [] if place is None else [place[0].get_submodule(place[1])]


class ExactBuffers(nn.Module):
    """A module whose own buffers, such as the filters of a spectrogram, stay in float32 when its weights are cast."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ExactBuffers":
        before = {name: value for name, value in self._buffers.items() if value is not None}
        # PyTorch leaves this method without annotations.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            cast = self._buffers[name]
            assert cast is not None
            if cast.dtype != value.dtype:
                self._buffers[name] = value.to(cast.device)
        return self


def read_before(layer: nn.Module, call: Callable[[], Any]) -> tuple[Any, Tensor]:
    """The result of a call, and the input (B, D) that a layer got in it."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _layer, arguments: seen.append(arguments[0]))
    try:
        result = call()
    finally:
        handle.remove()
    return result, seen[-1].flatten(1)


class Through:
    """A forward hook that passes a layer's output (of a tuple, its first part) through a tap, so it can be edited."""

    def __init__(self, tap: nn.Module) -> None:
        self.tap = tap

    def __call__(self, layer: nn.Module, _arguments: Any, result: Any) -> Any:
        """The layer's result after the tap."""
        if isinstance(result, Tensor):
            return self._tapped(result)
        if isinstance(result, tuple) and result and isinstance(result[0], Tensor):
            return (self._tapped(result[0]), *result[1:])
        raise TapError(f"the layer {type(layer).__name__} gives a {type(result).__name__}, which no tap can read")

    def _tapped(self, value: Tensor) -> Tensor:
        passed: Tensor = self.tap(value)
        return passed


class ThroughFrames(Through):
    """The same with the layer's frames at the tap."""

    def __init__(self, tap: nn.Module, axis: TimeAxis) -> None:
        super().__init__(tap)
        self.axis = axis

    def _tapped(self, value: Tensor) -> Tensor:
        frames = self.axis.read(value)
        passed = super()._tapped(frames)
        # Unless the tap was edited, the layer's values go on as they are, to the bit.
        return value if passed is frames else self.axis.write(value, passed)


@dataclass(frozen=True)
class Loaded:
    """What a backend found under a name."""

    body: Body
    kind: Kind
    rendering: Rendering | None
    """The preparation of the network's own processor; None: it reads the data as they are."""
    classes: tuple[str, ...] | None
    """Names of its classes; None: it is an encoder."""
    named: bool
    """Whether these names say something, unlike LABEL_0, LABEL_1."""
    licence: Licence | None = None
    text: Callable[[], TextSide] | None = None
    """Loads the text encoder of a network of pictures and texts; None: it has none."""
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
    stamp: str = ""
    """Place, sizes and times of its files; empty: it comes from no files."""
    pretrained: bool = True
    """Whether its weights were trained before, and not drawn from the recipe's seed."""
    notes: tuple[str, ...] = ()
    """Lines of output about it."""


def blocks_of(module: nn.Module, count: int | None = None) -> list[nn.Module]:
    """The blocks of a network: its list of `count` layers, or else its outermost list with the most weights."""
    lists = [
        (path, one)
        for path, one in module.named_modules()
        if isinstance(one, nn.ModuleList | nn.Sequential) and len(one) > 1
    ]
    right = [one for _, one in lists if isinstance(one, nn.ModuleList) and len(one) == count]
    if right:
        return list(max(right, key=_weights))
    outer = [one for path, one in lists if not any(path.startswith(f"{other}.") for other, _ in lists if other != path)]
    return list(max(outer, key=_weights)) if outer else []


def _weights(blocks: Iterable[nn.Module]) -> int:
    return sum(one.numel() for block in blocks for one in block.parameters())

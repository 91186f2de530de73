"""A model of transformers as a body: one kind of input, an embedding, and a classifier's logits."""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.pretrained import Body, Kind, PlainModel, blocks_of, read_before
from crossdistill.backends.processors import sound_processor
from crossdistill.backends.sound_frames import block_frames, by_row, mean_of_frames, padded_lengths
from crossdistill.backends.time_axis import axis_of, of_clips
from crossdistill.data.rendering import Rendering, SoundRendering
from crossdistill.losses.hidden_states import valid_frames

INPUTS: Mapping[str, Kind] = {
    "pixel_values": "image",
    "input_values": "audio",
    "input_features": "audio",
    "input_ids": "text",
}
PROJECTIONS: Mapping[Kind, str] = {
    "image": "get_image_features",
    "text": "get_text_features",
    "audio": "get_audio_features",
    "any": "",
}
UNSAVED = ("_name_or_path", "name_or_path", "auto_map", "transformers_version", "dtype", "quantization_config")
"""Fields of a configuration that a saved student does not need, or that could load other code."""
SKIPPING = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "speech_encoder_layerdrop")
"""Settings, of configurations and of layers, with which a step in training leaves out blocks."""
PROJECTION = "feature_projection"
"""The module before the positional convolution of HuBERT and its kin."""
AUTO = ("AutoModel", *(f"AutoModelFor{kind}Classification" for kind in ("Image", "Sequence", "Audio", "Video")))
"""Classes of transformers that find an architecture by its configuration."""
TOWERS: Mapping[Kind, tuple[str, ...]] = {"image": ("vision",), "text": ("text",), "audio": ("audio",), "any": ()}
"""Names, in models of two modalities, of the part that reads one."""


class TransformersBody(Body):
    """A model of transformers with one kind of input."""

    taps_projection = False
    """Whether what the positional convolution reads is the tap `projection`."""

    def __init__(self, model: nn.Module, kind: Kind, *, classifier: bool, pooled: bool, projected: bool) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        self.classifier = classifier
        self.pooled, self.projected = pooled, projected
        config: Any = model.config
        self.input = str(model.main_input_name)
        if projected:
            self.input = next(name for name, one in INPUTS.items() if one == kind)
        self._classes = int(config.num_labels) if classifier else 0
        self.width = 0
        self.frontend: nn.Module | None = None
        """The spectrogram of waves, for models that do not read waves; see `put_behind`."""
        self.frontend_settings: Mapping[str, Any] | None = None
        self.patches: Patches | None = None
        """The cutting of pictures into patches, for models whose processor does that (SigLIP 2)."""

    def put_behind(self, frontend: nn.Module | None, settings: Mapping[str, Any] | None) -> None:
        """Put the spectrogram, if any, with these settings of a feature extractor between waves and the model."""
        if frontend is not None:
            self.frontend, self.frontend_settings = frontend, settings
            self.input_dtype = torch.float32
            if (axis := axis_of(self.model, frontend)) is not None:
                self.axis = axis

    def description(self) -> dict[str, Any]:
        """See `Body`: the configuration, without places of files."""
        model: Any = self.model
        config = {key: value for key, value in model.config.to_dict().items() if key not in UNSAVED}
        if self.classifier:
            # The last layer may have been replaced.
            place = self.last()
            number = self._classes if place is None else model.get_submodule(place[1]).out_features
            config["id2label"] = {str(one): f"LABEL_{one}" for one in range(number)}
            config["label2id"] = {name: int(one) for one, name in config["id2label"].items()}
        return {
            "config": json.loads(json.dumps(config)),
            "architecture": type(self.model).__name__,
            "kind": self.kind,
            "pooled": self.pooled,
            **({} if self.frontend_settings is None else {"frontend": dict(self.frontend_settings)}),
            **({"projection": True} if self.taps_projection else {}),
        }

    def plain(self, classes: Sequence[str] | None, rendering: Rendering | None) -> PlainModel | None:
        """See `Body`: by an Auto class, which builds whole models alone, no side of two and none with adapters."""
        import transformers

        config: Any = copy.deepcopy(self.model.config)
        config.architectures, config.dtype = [type(self.model).__name__], next(self.model.parameters()).dtype
        for name in ("auto_map", "quantization_config"):
            config.__dict__.pop(name, None)
        place = self.last()
        if place is not None:
            last: Any = self.model.get_submodule(place[1])
            _name_classes(config, classes, int(last.out_features))
        for name in AUTO:
            loader = getattr(transformers, name)
            known = loader._model_mapping.get(type(config), ())
            if type(self.model) not in (known if isinstance(known, tuple) else (known,)):
                continue
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                opened = loader.from_config(config)
            if type(opened) is type(self.model) and _shapes(opened) == _shapes(self.model):
                return PlainModel(str(config.to_json_string()), name, self._processor(rendering))
        return None

    def _processor(self, rendering: Rendering | None) -> str | None:
        settings = self.frontend_settings
        if settings is None and self.input == "input_values" and isinstance(rendering, SoundRendering):
            # A group normalisation over time removes what a constant input adds to each channel.
            grouped = getattr(self.model.config, "feat_extract_norm", None) == "group"
            settings = sound_processor(rendering, level=not grouped)
        return None if settings is None else json.dumps(dict(settings), indent=2) + "\n"

    def other_taps(self) -> Mapping[str, nn.Module]:
        """See `Body`."""
        return {"projection": self.model.get_submodule(PROJECTION)} if self.taps_projection else {}

    def settle(self) -> list[str]:
        """See `Body`: layerdrop, which leaves out blocks whose outputs are compared, and SpecAugment.

        The frames that SpecAugment hides are drawn from numpy's state, which a resumed run and other processes do not
        share, and hide from the student what its teachers hear.
        """
        holders: dict[int, Any] = {}
        for module in self.model.modules():
            found: Any = [module, getattr(module, "config", None)]
            holders |= {id(one): one for one in found if one is not None}
        skipping, hiding = 0.0, 0.0
        for holder in holders.values():
            for name in SKIPPING:
                share = getattr(holder, name, None)
                if isinstance(share, int | float) and share > 0:
                    skipping = max(skipping, float(share))
                    setattr(holder, name, 0.0)
            shares = [getattr(holder, name, 0) or 0 for name in ("mask_time_prob", "mask_feature_prob")]
            if getattr(holder, "apply_spec_augment", False) and max(shares) > 0:
                hiding = max(hiding, *shares)
                holder.apply_spec_augment = False
        drop = f"its layerdrop of {skipping:g} is off: blocks that a step leaves out have no outputs"
        mask = f"its SpecAugment of {hiding:g} is off: the student would not hear what its teachers hear"
        return [*([drop] if skipping else []), *([mask] if hiding else [])]

    def layers(self) -> list[nn.Module]:
        """See `Body`."""
        config: Any = self.model.config
        side = next((getattr(config, f"{name}_config") for name in TOWERS[self.kind] if self.projected), config)
        return blocks_of(self.model, getattr(side, "num_hidden_layers", None))

    def last(self) -> tuple[nn.Module, str] | None:
        """See `Body`: the last linear layer with as many outputs as classes."""
        if not self.classifier:
            return None
        if self.replaced is not None:
            return self.model, self.replaced
        wide = [(name, one) for name, one in self.model.named_modules() if isinstance(one, nn.Linear)]
        right = [name for name, one in wide if one.out_features == self._classes]
        return (self.model, right[-1] if right else wide[-1][0]) if wide else None

    def frames(self, lengths: Tensor) -> Tensor | None:
        """See `Body`: of models that read waves by the rule of their convolutions; see `time_axis` for others."""
        if self.axis is not None:
            return self.axis.frames(lengths)
        return block_frames(self.model, lengths) if self.input == "input_values" and self.frontend is None else None

    def forward(self, *values: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """The embedding, and a classifier's logits; of a padded batch, each row's as from its valid frames alone.

        Raises:
            ShapeError: a sound is shorter than the receptive field, or padded for a model that reads the padding.
        """
        if self.frontend is not None:
            waves = values[0] if values else named["values"]
            features = self.frontend(waves, named.get("lengths")).to(next(self.model.parameters()).dtype)
            with of_clips(waves.shape[1]):
                return self._result({self.input: features})
        named = {**dict(zip([self.input], values, strict=False)), **_renamed(named, self.input)}
        if self.patches is not None:
            named = self.patches(named[self.input])
        if self.input != "input_values" or self.projected:
            return self._result(named)
        mask = named.pop("attention_mask", None)
        lengths = padded_lengths(self.model, None if mask is None else mask.sum(1), *named[self.input].shape[:2])
        if lengths is not None and mask is not None:
            named["attention_mask"] = mask
        with by_row(self.model, lengths), warnings.catch_warnings():
            if lengths is not None:
                # WavLM of transformers gives its attention a mask of padding beside numbers for positions.
                warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
            return self._result(named)

    def _padded(self, named: Mapping[str, Tensor]) -> bool:
        return self.input == "input_values" and "attention_mask" in named

    def _result(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.projected:
            return {"embedding": _pooled(getattr(self.model, PROJECTIONS[self.kind])(**named))}
        if not self.classifier:
            return {"embedding": self._embedding(self.model(**named, return_dict=True), named)}
        place = self.last()
        if place is None:
            return {"logits": self.model(**named, return_dict=True).logits}
        layer = place[0].get_submodule(place[1])
        result, embedding = read_before(layer, lambda: self.model(**named, return_dict=True))
        return {"logits": result.logits, "embedding": embedding}

    def _embedding(self, result: Any, named: Mapping[str, Tensor]) -> Tensor:
        pooler = getattr(result, "pooler_output", None)
        if self.pooled and pooler is not None:
            return torch.as_tensor(pooler).flatten(1)
        states = torch.as_tensor(result.last_hidden_state)
        if states.ndim == 4:
            return states.mean((2, 3))
        mask = named.get("attention_mask")
        count = getattr(self.model, "_get_feat_extract_output_lengths", None)
        if mask is not None and self._padded(named) and count is not None:
            # The model's own count: an adapter after the blocks gives fewer frames than they.
            return mean_of_frames(states, count(mask.sum(1)))
        if mask is not None and mask.shape == states.shape[:2]:
            weights = mask[..., None].to(states)
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        if any(name.endswith("cls_token") for name, _ in self.model.named_parameters()):
            return states[:, 0]
        return states.mean(1)


def _name_classes(config: Any, classes: Sequence[str] | None, number: int) -> None:
    """Give a classifier's configuration these names, or keep its own where they are as many as its outputs."""
    names = classes
    if names is None or len(names) != number:
        own = {int(key): str(name) for key, name in config.id2label.items()}
        names = [own.get(one, f"LABEL_{one}") for one in range(number)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: one for one, name in enumerate(names)}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


class Patches(nn.Module):
    """Pictures (B, 3, H, W) as the arguments of SigLIP 2: rows of patches, their mask, and the numbers of patches."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Patches (B, N, side * side * 3), each row by row with channels last; none of them is padding."""
        batch, channels, height, width = pictures.shape
        rows, columns = height // self.side, width // self.side
        cut = pictures.reshape(batch, channels, rows, self.side, columns, self.side)
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
        shapes = torch.tensor([[rows, columns]] * batch, device=pictures.device)
        mask = torch.ones(batch, rows * columns, dtype=torch.int32, device=pictures.device)
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def extra_repr(self) -> str:
        """The setting."""
        return f"side={self.side}"


def with_kind(model: Any, kind: Kind, *, classifier: bool, pooled: bool) -> TransformersBody:
    """A model as a body; of one for two modalities, the side that reads this kind of input."""
    projected = not classifier and bool(PROJECTIONS[kind]) and hasattr(model, PROJECTIONS[kind])
    if not classifier and getattr(model.config, "is_encoder_decoder", False):
        main = model.main_input_name
        model = model.get_encoder()
        model.main_input_name = main
    if projected:
        _drop_other_tower(model, kind)
    body = TransformersBody(model, kind, classifier=classifier, pooled=pooled, projected=projected)
    body.width = _width(model, kind, projected)
    if kind == "image" and str(model.config.model_type).startswith("siglip2"):
        vision = getattr(model.config, "vision_config", model.config)
        body.patches = Patches(int(vision.patch_size))
    return body


def _renamed(named: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Arguments of a padded batch by the names of transformers: `values` and `lengths` become an attention mask."""
    found = dict(named)
    if "lengths" in found and "values" in found:
        values, lengths = found.pop("values"), found.pop("lengths")
        found |= {name: values, "attention_mask": valid_frames(lengths, values.shape[-1]).long()}
    return found


def _pooled(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else torch.as_tensor(result.pooler_output)


def _drop_other_tower(model: Any, kind: Kind) -> None:
    """Remove the parts of a model of two modalities that read the other one."""
    kept = TOWERS[kind]
    for name, _ in list(model.named_children()):
        other = any(name.startswith(tower) for one, towers in TOWERS.items() if one != kind for tower in towers)
        # CLIP's projections are named after their tower, vision's also "visual".
        other = other or (name.startswith("visual") and "vision" not in kept)
        if other:
            setattr(model, name, None)


def _width(model: Any, kind: Kind, projected: bool) -> int:
    config = model.config
    if projected:
        # SigLIP has no projection: its towers are as wide as the common space.
        width = getattr(config, "projection_dim", None) or config.text_config.projection_size
        return int(width)
    for name in ("hidden_size", "d_model", "hidden_sizes", "embed_dim"):
        value = getattr(config, name, None)
        if value:
            return int(value[-1] if isinstance(value, list | tuple) else value)
    return 0

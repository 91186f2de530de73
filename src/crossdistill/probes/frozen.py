"""Frozen networks of sound by name: a run, a student, a folder of transformers, or a network of another library."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.names import BACKENDS, RUN, backend_of
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.processors import read_json
from crossdistill.batch import Batch, Input, InputSpec
from crossdistill.data.prepare import fit_length, prepare_sound
from crossdistill.data.rendering import Sound, SoundRendering, rendering_of
from crossdistill.errors import SettingError
from crossdistill.methods.layer_choice import chosen
from crossdistill.nets.translators import by_position
from crossdistill.network import Network
from crossdistill.outputs import Signal
from crossdistill.run_folder.student_files import STUDENT_FOLDER, config_file
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.hashing import fingerprint, key_hash, structure
from crossdistill.runtime.tensor_file import check_finite
from crossdistill.student import load_student

MODALITY = "audio"
FORMS = "a run's or student's folder, a folder of transformers, or transformers:FOLDER_OR_ID"
SHORTEST = 0.1
"""Seconds to which shorter clips are padded with silence: networks of waves read 25 ms at least."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """A frozen network of sound: what it reads, how recordings are prepared for it, and its layers.

    `prepare` makes the input of some decoded recordings of one length; `key` identifies how. `layers` are taps, shallow
    first; without any the embedding is probed. `seconds` is the window that the network reads, if it has one (30 s of
    Whisper, 10.24 s of AST).
    """

    name: str
    network: Network
    modality: str
    prepare: Callable[[Sequence[Sound]], Input]
    rate: int
    key: str
    layers: tuple[str, ...] = ()
    seconds: float | None = None
    weights: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Put the network into evaluation mode and take the key of its weights and code.

        Raises:
            DataError: a weight is NaN or infinite.
        """
        check_finite(self.network.module, self.name)
        self.network.eval().requires_grad_(False)
        if not self.weights:
            module = self.network.module
            object.__setattr__(
                self, "weights", key_hash([fingerprint(module), structure(module), self.network.code_text()])
            )

    @torch.no_grad()
    def states(self, sounds: Sequence[Sound], device: torch.device) -> Tensor:
        """The layers (B, T, L, D) for recordings of one length; one frame of a network without layers.

        Raises:
            SettingError: the layers differ in shape, so that they cannot be summed.
        """
        prepared = self.prepare(sounds)
        batch = Batch({self.modality: prepared}, torch.arange(len(sounds))).to(device)
        if not self.layers:
            signal = self._vector(batch)
            return by_position(self.network(batch, {signal}).need(signal)).mean(1)[:, None, None].float().cpu()
        outputs = self.network(batch, {Signal.feature(tap) for tap in self.layers})
        values = [by_position(outputs.need(Signal.feature(tap))) for tap in self.layers]
        shapes = {tuple(value.shape[1:]) for value in values}
        if len(shapes) > 1:
            raise SettingError(f"{self.name}: its layers give {sorted(shapes)}, which have no sum; probe --layers last")
        return torch.stack(values, 2).float().cpu()

    def _vector(self, batch: Batch) -> Signal:
        signal = next(iter(chosen("vector", self.network.spec or self.network.probe(batch))), None)
        if signal is None:
            raise SettingError(f"{self.name} has no embedding and no layer besides its logits")
        return signal


def open_frozen(name: str) -> Frozen:
    """A network by name: a run's folder, a student's folder, a folder of transformers, or `transformers:FOLDER`.

    Raises:
        SettingError: there is none of that name, or it reads no sound.
        RunError: a run has no student yet.
        DataError: its weights or its processor are missing or damaged.
    """
    backend = backend_of(name)
    path = Path(name.partition(":")[2] if backend == RUN else name).expanduser()
    if backend in BACKENDS:
        return _of_library(name)
    if backend not in (None, RUN) or not path.exists():
        raise SettingError(f"{name}: no network to probe; wanted {FORMS}")
    for folder in (path / STUDENT_FOLDER, path):
        file = config_file(folder)
        if file_fault(file) is None:
            # Without our record, it is a folder that transformers saved.
            of_student = "library" in read_json(file)
            return _of_student(name, path) if of_student else _of_library(f"transformers:{folder}", name)
    return _of_student(name, path)


def _of_library(full: str, name: str | None = None) -> Frozen:
    prefix, _, source = full.partition(":")
    backend: Any = importlib.import_module(BACKENDS[prefix])
    if not hasattr(backend, "load") or not hasattr(backend, "modality_of"):
        raise SettingError(f"{full}: a network of {prefix}: has no layers to probe; wanted {FORMS}")
    kind = backend.modality_of(source, {})
    if kind != MODALITY:
        raise SettingError(f"{full} reads no sound: its input is {kind!r}; wanted a network of audio")
    loaded = backend.load(source, {})
    rendering = loaded.rendering
    if not isinstance(rendering, SoundRendering):
        raise SettingError(f"{full}: it has no preparation of recordings; wanted one of waves")
    module = Pretrained(loaded.body, logits=False)
    return Frozen(
        name or full,
        Network(module, (MODALITY,), module.taps),
        MODALITY,
        rendering.apply_all,
        rendering.rate,
        rendering.key,
        module.blocks,
        _window(module, rendering.rate),
    )


def _of_student(name: str, path: Path) -> Frozen:
    student = load_student(path)
    network = student.network
    spec = student.inputs[network.reads[0]]
    prepare, rate, key = _preparation(spec, name)
    if len(network.reads) != 1 or prepare is None:
        reads = ", ".join(f"{modality} ({student.inputs[modality].kind})" for modality in network.reads)
        raise SettingError(f"{name} reads no sound alone: it reads {reads}; wanted a network of audio")
    blocks = network.module.blocks if isinstance(network.module, Pretrained) else ()
    layers = tuple(tap for tap in network.taps if tap in blocks)
    return Frozen(name, network, network.reads[0], prepare, rate, key, layers, _window(network.module, rate))


def _window(module: nn.Module, rate: int) -> float | None:
    """The seconds that a network of another library reads at once; None: any number."""
    axis = module.body.axis if isinstance(module, Pretrained) else None
    return None if axis is None else axis.samples / rate


def _preparation(spec: InputSpec, who: str) -> tuple[Callable[[Sequence[Sound]], Input] | None, int, str]:
    """The preparation of a student's recordings, with its rate in hertz and its key; None: it reads no recordings."""
    rendering = rendering_of(spec, who)
    if isinstance(rendering, SoundRendering):
        return rendering.apply_all, rendering.rate, rendering.key
    if spec.kind == "log-mel" and "samples" in spec.options:
        return partial(_spectrograms, spec), int(spec.options["sample_rate"]), key_hash(dict(spec.options))
    return None, 0, ""


def _spectrograms(spec: InputSpec, sounds: Sequence[Sound]) -> Tensor:
    return prepare_sound(torch.stack([fit_length(sound.wave, spec.options["samples"]) for sound in sounds]), spec)

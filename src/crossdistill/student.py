"""The saved student: a folder that contains the student alone, and loads without teachers, recipe or run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossdistill.backends.names import backend_of
from crossdistill.backends.saved import is_saved_backend, plain_model, rebuilt, saved_options
from crossdistill.batch import Batch, Input, InputSpec, Task
from crossdistill.data.dataset import Dataset
from crossdistill.data.decode import decode, prepare_array
from crossdistill.data.prediction import Prediction, predictions_of
from crossdistill.data.prepare import padded
from crossdistill.data.rendering import rendering_of, varies
from crossdistill.data.targets import TargetScale
from crossdistill.errors import DataError, NonFiniteError, RunError, SettingError, ShapeError
from crossdistill.methods.layer_choice import chosen
from crossdistill.models import MODELS, build_network, check_options, is_model
from crossdistill.models.own_network import made
from crossdistill.nets.translators import by_position
from crossdistill.network import Network
from crossdistill.outputs import Outputs, Signal
from crossdistill.recipe import NetworkConfig
from crossdistill.report import foreign
from crossdistill.run_folder.folder import RECIPE, unfinished
from crossdistill.run_folder.student_files import (
    CARD,
    CONFIG,
    PREPARATION,
    STUDENT_FOLDER,
    WEIGHTS,
    ForeignModel,
    StudentConfig,
    check_student_weights,
    config_file,
    load_student_weights,
    read_config,
    write_files,
)
from crossdistill.runtime.files import NO_FILE, atomic_folder, file_fault
from crossdistill.runtime.tensor_file import first_three, not_finite, read_weights

Example = Path | str | NDArray[Any] | Tensor
"""A file, or an array or tensor of one example."""


class Student:
    """A trained student: predicts classes, labels or numbers for files or tensors."""

    def __init__(
        self,
        network: Network,
        classes: Sequence[str],
        inputs: Mapping[str, InputSpec],
        task: Task = "classes",
        scale: TargetScale | None = None,
    ) -> None:
        self.task, self.scale = task, scale
        self.network = network.eval()
        self.classes = tuple(classes)
        self.inputs = dict(inputs)

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Input]) -> Tensor:
        """Logits (B, C) for prepared inputs, keyed by modality.

        Raises:
            SignalError: a modality that the student reads is missing.
            ShapeError: an example has another shape than in training, or modalities have different numbers of rows.
        """
        for name in self.network.reads:
            value, spec = inputs.get(name), self.inputs.get(name)
            if isinstance(value, Tensor) and spec is not None and tuple(value.shape[1:]) != tuple(spec.shape):
                raise ShapeError(
                    f"{name!r} has the shape {tuple(value.shape)}; this student reads (rows, "
                    f"{', '.join(map(str, spec.shape))}), as in training"
                )
        first = next(iter(inputs.values()), torch.empty(0))
        rows = len(first if isinstance(first, Tensor) else next(iter(first.values())))
        outputs: Outputs = self.network(Batch(dict(inputs), torch.arange(rows)))
        return outputs.need(Signal.LOGITS)

    @torch.no_grad()
    def embeddings(self, inputs: Mapping[str, Input] | Example | Sequence[Example]) -> Tensor:
        """Embeddings (B, D): the network's own, or else its last tap, averaged over positions.

        `inputs` are prepared inputs, keyed by modality, or examples as in `predict`. Files are read one by one, so that
        none is padded to the length of another.

        Raises:
            SettingError: the network has neither, no example is given, or the student reads several modalities, so that
                one file is not an example.
            DataError: a file or an array cannot be read; the message names it.
        """
        if not isinstance(inputs, Mapping):
            return self._of_examples(inputs)
        first = next(iter(inputs.values()), torch.empty(0))
        batch = Batch(
            dict(inputs), torch.arange(len(first if isinstance(first, Tensor) else next(iter(first.values()))))
        )
        signal = next(iter(chosen("vector", self.network.spec or self.network.probe(batch))), None)
        if signal is None:
            raise SettingError(f"{self.network.name} has no embedding and no tap besides its logits")
        outputs: Outputs = self.network(batch, {signal})
        return by_position(outputs.need(signal)).mean(1)

    def _of_examples(self, examples: Example | Sequence[Example]) -> Tensor:
        if len(self.network.reads) != 1:
            reads = ", ".join(self.network.reads)
            raise SettingError(f"this student reads {reads}; give embeddings() prepared inputs of all of them")
        (modality,) = self.network.reads
        parts: list[Example | Sequence[Example]] = [examples]
        if not isinstance(examples, str | Path | np.ndarray | Tensor):
            parts = [[example] for example in examples]
        if not parts:
            raise SettingError("embeddings() has no example; give files, arrays or tensors")
        return torch.cat([self.embeddings({modality: _rows(self.inputs[modality], part)}) for part in parts])

    def predict(self, examples: Example | Sequence[Example]) -> list[Prediction]:
        """Predict the class of each example: files, or arrays and tensors in memory, prepared exactly as in training.

        An array or a tensor is one example, in any of the forms that a `.npy` file may have, or a batch of the
        network's own inputs (rows, ...). A sequence may mix files and single examples.

        Raises:
            SettingError: the student reads several modalities, so that one file is not an example; or it has no classes
                with names.
            DataError: a file or an array cannot be read; the message names it.
            NonFiniteError: a logit is NaN or infinite.
        """
        if len(self.network.reads) != 1:
            raise SettingError(f"this student reads {', '.join(self.network.reads)}; use logits() with all of them")
        if not self.classes:
            raise SettingError(
                "this student has no classes to predict: its data named none. In Python, load_student(FOLDER)"
                ".embeddings(FILES) gives its embeddings, and logits(INPUTS) the logits of a network that has any; "
                "`crossdistill probe FOLDER` measures it"
            )
        (modality,) = self.network.reads
        rows = _rows(self.inputs[modality], examples)
        if not len(rows):
            return []
        logits = self.logits({modality: rows})
        if logits.shape[1:] != (len(self.classes),):
            raise ShapeError(
                f"{self.network.name} gives logits {tuple(logits.shape)} (batch first), and there are "
                f"{len(self.classes)} classes"
            )
        if not logits.isfinite().all():
            row = int((~logits.isfinite()).any(1).nonzero()[0, 0])
            raise NonFiniteError(f"{self.network.name} gives logits that are NaN or Inf for example {row} (from 0)")
        return predictions_of(self.task, logits, self.classes, self.scale)


def _rows(spec: InputSpec, examples: Example | Sequence[Example]) -> Input:
    """Prepared examples, stacked; of varying length, padded."""
    if isinstance(examples, np.ndarray | Tensor):
        if examples.ndim == len(spec.shape) + 1 and tuple(examples.shape[1:]) == tuple(spec.shape):
            parts = [prepare_array(spec, example, f"row {row}") for row, example in enumerate(examples)]
        else:
            parts = [prepare_array(spec, examples, "the array")]
    else:
        several = [examples] if isinstance(examples, str | Path) else examples
        parts = [
            prepare_array(spec, example, f"example {number}")
            if isinstance(example, np.ndarray | Tensor)
            else decode(spec, Path(example))
            for number, example in enumerate(several)
        ]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors and varies(rendering_of(spec, "student")):
        return padded(tensors)
    if len(tensors) == len(parts):
        return torch.stack(tensors) if tensors else torch.empty(0)
    named = [part for part in parts if not isinstance(part, Tensor)]
    return {name: torch.stack([part[name] for part in named]) for name in named[0]}


def save_student(path: Path, network: Network, source: NetworkConfig | Network, dataset: Dataset, card: str) -> None:
    """Write the student's folder: weights, config, preparation tensors and model card, without times and paths.

    A student whose model an Auto class of transformers opens becomes a plain folder of transformers, with the student's
    own files beside it.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written.
        StorageError: it could not be written.
    """
    specs = {name: dataset.input_specs[name] for name in network.reads}
    plain = None
    if isinstance(source, NetworkConfig):
        plain = plain_model(network, dataset.classes, rendering_of(next(iter(specs.values())), "the student"))
    other = saved_options(network, len(dataset.classes), config=plain is None)
    if other is not None and isinstance(source, NetworkConfig):
        model: dict[str, Any] = {"name": backend_of(source.model) or "transformers", "options": other}
    elif isinstance(source, NetworkConfig) and backend_of(source.model) is None:
        model = {"name": source.model, "options": {"classes": len(dataset.classes), **source.options}}
    else:
        kind = type(network.module)
        model = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    config: dict[str, Any] = {
        "model": model,
        "reads": list(network.reads),
        "taps": list(network.taps),
        "classes": list(dataset.classes),
        "inputs": {n: {"kind": s.kind, "shape": list(s.shape), "options": dict(s.options)} for n, s in specs.items()},
    }
    if dataset.task != "classes":
        config |= {"task": dataset.task, "scale": None if dataset.scale is None else asdict(dataset.scale)}
    parameters = {
        f"{name}/{key}": value.contiguous() for name, spec in specs.items() for key, value in spec.parameters.items()
    }
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in network.module.state_dict().items()}
    wrong = [*not_finite(weights, network.module), *not_finite(parameters)]
    if wrong:
        raise NonFiniteError(
            f"the student in {path} is not written: {first_three(wrong)}. Its training has diverged: "
            "take a smaller learning rate, or clip gradients"
        )
    with atomic_folder(path) as temporary:
        write_files(temporary, config, weights, parameters, plain)
        (temporary / CARD).write_text(card, encoding="utf-8")


def load_student(path: Path | str, module: nn.Module | None = None) -> Student:
    """Load a student's folder, after a check that the files that its predictions depend on are as written.

    A class that the folder names is never imported: a module that is not in the table of models is passed in, as a
    `Network` where it needs adapters for inputs or results. The model card may have been edited.

    Raises:
        RunError: the folder is not a student's, or its config is damaged, was edited, or has another format.
        DataError: a file of tensors is missing, has changed, or contains NaN; the message names it.
        SettingError: the module is not in the table of models, and none was passed in; or an option is unknown.
        ShapeError: the weights do not fit the module.
    """
    path = student_folder(Path(path))
    config = read_config(path)
    specs = _specs(path, config)
    if module is not None:
        network = made(module) if isinstance(module, Network) else Network(module, config.reads, config.taps)
    else:
        network = _of_table(path, config)
    load_student_weights(network.module, path, config, network.name)
    wrong = not_finite(network.module.state_dict(), network.module)
    if wrong:
        raise DataError(f"{path / WEIGHTS}: {first_three(wrong)}")
    scale = None if config.scale is None else TargetScale(config.scale.mean, config.scale.deviation)
    return Student(network, config.classes, specs, config.task, scale)


def student_folder(path: Path) -> Path:
    """The student's folder inside a run's folder, or the folder itself.

    Raises:
        RunError: it is neither, or the student in the run's folder belongs to another run.
    """
    for folder in (path / STUDENT_FOLDER, path):
        if file_fault(config_file(folder)) != NO_FILE:
            another = foreign(path) if folder != path else None
            if another is not None:
                raise RunError(f"{another}; `crossdistill run {path} --resume` writes the run's own student again")
            return folder
    if file_fault(path / RECIPE) is None:
        raise RunError(f"{path} holds no student yet; {unfinished(path)}")
    raise RunError(f"{path} is neither a run's folder nor a student's: there is no {CONFIG} in it")


def _of_table(path: Path, config: StudentConfig) -> Network:
    """The network that a config names, built after a check of its options and of the weights' sizes."""
    model = config.model
    if isinstance(model, ForeignModel) or not (is_model(model.name) or is_saved_backend(model.name)):
        what = model.class_name if isinstance(model, ForeignModel) else model.name
        raise SettingError(
            f"the student in {path} is a {what!r}, which is not in the table of models; a class that a folder names "
            "is never imported by itself: build the module yourself and call load_student(path, module=...), or name "
            "the function that makes the run's recipe: --recipe FILE.py:FUNCTION"
        )
    if model.options.get("classes") != len(config.classes):
        raise RunError(
            f"{config_file(path)} is damaged: the model has {model.options.get('classes')!r} classes, and "
            f"{len(config.classes)} have names"
        )
    other = is_saved_backend(model.name)
    if not other:
        check_options(model.name, model.options)
    make: Callable[[], Network] = (
        partial(rebuilt, model.name, model.options, config.reads)
        if other
        else partial(build_network, model.name, config.reads, **model.options)
    )
    # First without memory: sizes from the folder have to match its weights before anything is allocated.
    with torch.device("meta"):
        empty = make()
    check_student_weights(empty.module, path, config, empty.name)
    if model.name in MODELS:
        # A network of another package may depend on values, which tensors on "meta" lack.
        _check_inputs(path, config, empty)
    network = make()
    if not set(config.taps) <= set(network.taps):
        raise RunError(f"{config_file(path)} is damaged: {model.name} has the taps {network.taps}, not {config.taps}")
    # The model may have gained taps since the folder was written.
    return Network(network.module, network.reads, config.taps)


def _check_inputs(path: Path, config: StudentConfig, empty: Network) -> None:
    """Check that a network takes inputs of the shapes in a config, by a pass on the device "meta"."""
    inputs = {name: torch.empty(1, *spec.shape, device="meta") for name, spec in config.inputs.items()}
    logits = empty.eval()(Batch(inputs, torch.empty(1, dtype=torch.int64, device="meta"))).need(Signal.LOGITS)
    if logits.shape[1:] != (len(config.classes),):
        raise ShapeError(f"{path}: {empty.name} gives {logits.shape[1:]}, for {len(config.classes)} classes")


def _specs(path: Path, config: StudentConfig) -> dict[str, InputSpec]:
    """Inputs of the student, each with its tensors of the preparation."""
    file = path / PREPARATION
    fitted = read_weights(file) if PREPARATION in dict(config.files) else {}
    wrong = not_finite(fitted)
    if wrong:
        raise DataError(f"{file}: {first_three(wrong)}")
    specs = {}
    for name, spec in config.inputs.items():
        tensors = {key.removeprefix(f"{name}/"): fitted[key] for key in fitted if key.rpartition("/")[0] == name}
        specs[name] = InputSpec(spec.kind, spec.shape, spec.options, tensors)
    unknown = [key for key in fitted if key.rpartition("/")[0] not in specs]
    if unknown:
        raise DataError(f"{file}: holds {unknown[0]!r}, and the student reads {', '.join(map(repr, config.reads))}")
    return specs

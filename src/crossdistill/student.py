"""The product: a folder that holds the student alone, and loads without the rest of the library's world."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from crossdistill.batch import Batch, InputSpec
from crossdistill.checkpoint import load_weights, read_weights
from crossdistill.data.dataset import Dataset
from crossdistill.data.decode import decode
from crossdistill.errors import RunError, SettingError
from crossdistill.models import MODELS, build_network
from crossdistill.network import Network
from crossdistill.outputs import Outputs, Want
from crossdistill.recipe import NetworkConfig
from crossdistill.storage import atomic_folder

WEIGHTS, CONFIG, PREPARATION, CARD = "model.safetensors", "config.json", "preparation.safetensors", "README.md"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the student says of one example: the class, and its probability (dimensionless)."""

    label: str
    probability: float


class Student:
    """A trained student: reads files or tensors, and answers with classes."""

    def __init__(self, network: Network, classes: Sequence[str], inputs: Mapping[str, InputSpec]) -> None:
        self.network = network.eval()
        self.classes = tuple(classes)
        self.inputs = dict(inputs)

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) for prepared inputs, keyed by modality.

        Raises:
            SignalError: a modality that the student reads is not there.
        """
        rows = len(next(iter(inputs.values())))
        outputs: Outputs = self.network(Batch(dict(inputs), torch.arange(rows)))
        return outputs.need(Want.LOGITS)

    def predict(self, files: Sequence[Path | str]) -> list[Prediction]:
        """The class of each file, prepared exactly as in training.

        Raises:
            SettingError: the student reads several modalities, so that one file is not an example.
            DataError: a file that cannot be read; names it.
        """
        if len(self.network.reads) != 1:
            raise SettingError(f"this student reads {', '.join(self.network.reads)}; use logits() with all of them")
        if not files:
            return []
        (modality,) = self.network.reads
        rows = torch.stack([decode(self.inputs[modality], Path(file)) for file in files])
        probabilities = self.logits({modality: rows}).softmax(1)
        best = probabilities.max(1)
        return [
            Prediction(self.classes[int(index)], float(value))
            for index, value in zip(best.indices, best.values, strict=True)
        ]


def save_student(path: Path, network: Network, given: NetworkConfig | Network, dataset: Dataset, card: str) -> None:
    """Write the student's folder: weights, config, preparation tensors and model card; no time and no path inside.

    Raises:
        StorageError: it could not be written.
    """
    if isinstance(given, NetworkConfig):
        model: dict[str, Any] = {"name": given.model, "options": {"classes": len(dataset.classes), **given.options}}
    else:
        kind = type(network.module)
        model = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    specs = {name: dataset.input_specs[name] for name in network.reads}
    config = {
        "format": FORMAT,
        "library": "crossdistill",
        "model": model,
        "reads": list(network.reads),
        "taps": list(network.taps),
        "classes": list(dataset.classes),
        "inputs": {n: {"kind": s.kind, "shape": list(s.shape), "options": dict(s.options)} for n, s in specs.items()},
    }
    parameters = {
        f"{name}/{key}": value.contiguous() for name, spec in specs.items() for key, value in spec.parameters.items()
    }
    with atomic_folder(path) as temporary:
        weights = {key: value.detach().cpu().contiguous().clone() for key, value in network.module.state_dict().items()}
        save_file(weights, temporary / WEIGHTS)
        if parameters:
            save_file(parameters, temporary / PREPARATION)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(card, encoding="utf-8")


def load_student(path: Path | str, module: nn.Module | None = None) -> Student:
    """Load a student's folder.

    A class that the folder names is never imported: a module that is not in the table of models is passed in, as a
    `Network` where inputs or results take a way of their own.

    Raises:
        RunError: the folder is not a student's, or its config is damaged.
        DataError: a file of weights cannot be read; names it.
        SettingError: the student's module is foreign, and none was passed in.
        ShapeError: the weights do not fit the module.
    """
    path = Path(path)
    path = path / "student" if (path / "student" / CONFIG).is_file() else path
    if not (path / CONFIG).is_file():
        unfinished = (path / "recipe.yaml").is_file()
        raise RunError(
            f"{path} holds no student yet; finish its run with: crossdistill run {path} --resume"
            if unfinished
            else f"{path} is neither a run's folder nor a student's: there is no {CONFIG} in it"
        )
    fitted = read_weights(path / PREPARATION) if (path / PREPARATION).is_file() else {}
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        model, reads = dict(config["model"]), tuple(config["reads"])
        known, options = str(model.get("name", "")), dict(model.get("options", {}))
        specs = {name: _spec(name, spec, fitted) for name, spec in config["inputs"].items()}
        classes, taps = tuple(config["classes"]), tuple(config["taps"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path / CONFIG} is damaged: {type(error).__name__}: {error}") from error
    if module is not None:
        network = module if isinstance(module, Network) else Network(module, reads, taps)
    elif known in MODELS:
        network = build_network(known, reads, **options)
    else:
        what = known or model.get("class")
        raise SettingError(
            f"the student in {path} is a {what!r}, which is not in the table of models; a class that a folder names "
            "is never imported by itself: build the module yourself and call load_student(path, module=...)"
        )
    load_weights(network.module, path / WEIGHTS, network.name)
    return Student(network, classes, specs)


def _spec(name: str, values: Mapping[str, Any], fitted: Mapping[str, Tensor]) -> InputSpec:
    own = {key.partition("/")[2]: value for key, value in fitted.items() if key.partition("/")[0] == name}
    return InputSpec(values["kind"], tuple(values["shape"]), values["options"], own)


def model_card(
    dataset: Dataset, title: str, table: str, teachers: Sequence[str], parameters: int, *, foreign: bool = False
) -> str:
    """The student's README: what it is, what was measured, on what, and whose licences hold.

    A `foreign` student's module is not in the table of models: whoever loads it has to bring it.
    """
    licences = "\n".join(
        f"- {one.name}: {one.licence} ({one.source}){'' if one.commercial else '. **Forbids commercial use.**'}"
        for one in dataset.licences
    )
    given = ", module=YourModule()" if foreign else ""
    return f"""# {title}

A student of {parameters:,} parameters, distilled with crossdistill.
Teachers: {", ".join(teachers) or "none, labels alone"}.
Classes: {", ".join(dataset.classes)}.

## Measured

Test split of `{dataset.name}`; model selection saw the validation split only.

{table}
{dataset.about}

## Licences of the data

{licences or "- not stated by whoever gave the data"}

## Use

```python
from crossdistill import load_student

student = load_student("this folder"{given})
student.predict(["a file"])
```
"""

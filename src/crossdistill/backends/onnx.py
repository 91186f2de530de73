"""Frozen networks from ONNX files of any framework, run by onnxruntime; named outputs are taps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossdistill.backends.names import Built
from crossdistill.backends.processors import own_rendering
from crossdistill.batch import Batch
from crossdistill.data.dataset import Dataset
from crossdistill.data.rendered import rendered
from crossdistill.errors import DataError, MissingExtraError, SettingError, nearest
from crossdistill.network import Network
from crossdistill.runtime.code_key import Keyed
from crossdistill.runtime.files import file_fault
from crossdistill.runtime.hashing import file_hash, key_hash

OPTIONS = ("logits", "embedding", "inputs", "rendering")
TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def build(
    name: str, options: Mapping[str, Any], reads: Sequence[str] | None, *, member: str, dataset: Dataset
) -> Built:
    """The network of `onnx:FILE`.

    It reads the modalities `reads` as the file's first inputs, in their order. Further inputs get the values in the
    option `inputs`, or zeros. The options `logits` and `embedding` name outputs; by default an output with one number
    for each class is the logits, and the first of any other width the embedding. `rendering` prepares pictures.

    Raises:
        SettingError: an unknown option or output, or the file has other inputs.
        DataError: the file is missing or no ONNX.
        MissingExtraError: onnxruntime is not installed.
    """
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise SettingError(f"{name} has no option {unknown[0]!r}; {nearest(unknown[0], OPTIONS)}")
    path = Path(name.partition(":")[2]).expanduser()
    session = _session(path)
    reads = tuple(reads or (tuple(dataset.inputs) if len(dataset.inputs) == 1 else ()))
    known = [one.name for one in session.get_inputs()]
    if not reads or len(reads) > len(known):
        raise SettingError(
            f"{name} has the inputs {', '.join(known)}; set `reads` to as many modalities of the data, of "
            f"{', '.join(dataset.inputs)}"
        )
    outputs = [one.name for one in session.get_outputs()]
    for role in ("logits", "embedding"):
        if options.get(role) not in (None, *outputs):
            raise SettingError(f"{name}: {role}: it has no output {options[role]!r}; {nearest(options[role], outputs)}")
    constants = {str(key): value for key, value in dict(options.get("inputs", {})).items()}
    wrong = [key for key in constants if key not in known[len(reads) :]]
    if wrong:
        raise SettingError(f"{name}: inputs: {wrong[0]!r} is none of {', '.join(known[len(reads) :]) or '(none)'}")
    module = OnnxModule(session, file_hash(path), len(reads), constants, len(dataset.classes), options)
    renderings = {}
    if "rendering" in options:
        renderings = {f"{reads[0]}@{member}": own_rendering(options["rendering"], name)}
        reads = (*renderings, *reads[1:])
    module.keep_outputs_of_rows(rendered(dataset, renderings, name).example(), reads, name)
    return Built(Network(module, reads, module.taps, renderings=renderings), ("it is frozen",))


class OnnxModule(nn.Module):
    """An ONNX file as a module without weights; it runs on the CPU."""

    def __init__(
        self,
        session: Any,
        digest: str,
        reads: int,
        constants: Mapping[str, Any],
        classes: int,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        given = session.get_inputs()
        self._names = [one.name for one in given[:reads]]
        self._types = {one.name: str(one.type) for one in given}
        self._rest = {one.name: list(one.shape) for one in given[reads:]}
        self._constants = dict(constants)
        self._one_by_one = any(one.shape[:1] == [1] for one in given[:reads])
        self._outputs = [one.name for one in session.get_outputs()]
        self._classes = classes
        self._roles = {role: options.get(role) for role in ("logits", "embedding")}
        self._session = Keyed(session.run, key_hash(["onnx", digest]))
        for name in self._outputs:
            self.add_module(_tap(name), nn.Identity())

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the outputs, as those of submodules."""
        return tuple(_tap(name) for name in self._outputs)

    def keep_outputs_of_rows(self, batch: Batch, reads: Sequence[str], who: str) -> None:
        """Leave out outputs without a row for each row of the input, such as a state; two lengths of a batch tell.

        Raises:
            DataError: an output is NaN. The weights in the file cannot be looked at, and training would blame the rows.
        """
        arrays = [torch.as_tensor(batch.read(name)).cpu().numpy() for name in reads]
        try:
            found = [self._run([one[list(rows)] for one in arrays]) for rows in ((0, 1), (0, 1, 0))]
        except Exception:  # the trial pass of the plan reports it, with the shapes
            return
        two, three = found
        kept = [name for name in self._outputs if two[name].shape[:1] == (2,) and three[name].shape[:1] == (3,)]
        for name in set(self._outputs) - set(kept):
            delattr(self, _tap(name))
        self._outputs = kept
        wrong = [name for name in kept if two[name].dtype.kind == "f" and np.isnan(two[name]).any()]
        if wrong:
            raise DataError(
                f"{who}: its output {wrong[0]!r} is NaN for the first rows of the data: its weights are damaged, or it "
                "wants inputs of another kind or range"
            )

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        """Logits and embedding, as far as the outputs have them; every output passes its tap."""
        device = values[0].device
        found = {}
        for name, array in self._run([value.detach().cpu().numpy() for value in values]).items():
            tensor = torch.from_numpy(np.array(array)).to(device)
            found[name] = self.get_submodule(_tap(name))(tensor.float() if tensor.is_floating_point() else tensor)
        return self._in_roles(found)

    def _run(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for a batch; a file for one row runs for each row."""
        if not self._one_by_one or len(arrays[0]) == 1:
            return self._run_at_once(arrays)
        rows = [self._run_at_once([one[row : row + 1] for one in arrays]) for row in range(len(arrays[0]))]
        return {name: np.concatenate([np.atleast_1d(row[name]) for row in rows]) for name in rows[0]}

    def _run_at_once(self, arrays: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        feed = dict(zip(self._names, arrays, strict=True))
        for name, shape in self._rest.items():
            if name in self._constants:
                feed[name] = np.asarray(self._constants[name])
            else:
                feed[name] = np.zeros([one if isinstance(one, int) else len(arrays[0]) for one in shape])
        feed = {name: array.astype(TYPES.get(self._types[name], array.dtype)) for name, array in feed.items()}
        return dict(zip(self._outputs, self._session.call(self._outputs, feed), strict=True))

    def _in_roles(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        roles = {role: name for role, name in self._roles.items() if name is not None}
        flat = [name for name, value in found.items() if value.ndim == 2]
        right = [name for name in flat if found[name].shape[1] == self._classes and name not in roles.values()]
        if "logits" not in roles and right and self._classes > 1:
            roles["logits"] = right[0]
        others = [name for name, value in found.items() if name not in roles.values() and value.is_floating_point()]
        if "embedding" not in roles and others:
            roles["embedding"] = next((name for name in others if name in flat), others[0])
        result = {role: found[name] for role, name in roles.items()}
        if "embedding" in result and result["embedding"].ndim > 2:
            # Steps or positions are averaged.
            value = result["embedding"]
            result["embedding"] = value.mean(1) if value.ndim == 3 else value.flatten(2).mean(2)
        return result


def _session(path: Path) -> Any:
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"onnx:{path}: {fault}")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("a network `onnx:FILE`", "onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises exceptions of its own
        raise DataError(f"onnx:{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _tap(output: str) -> str:
    """The name of an output as that of a submodule, which has no dots."""
    return "".join(letter if letter.isalnum() or letter in "_-/" else "_" for letter in output) or "output"

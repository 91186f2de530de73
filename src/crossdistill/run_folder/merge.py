"""Merging of student folders: those of this library, and plain folders of Hugging Face models."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossdistill.data.audio.any_sound import decode_part
from crossdistill.data.audio.manifest import sounds_in
from crossdistill.data.audio.sound_file import resample
from crossdistill.data.table_file import TABLES, read_table
from crossdistill.errors import DataError, MissingExtraError, RunError, SettingError
from crossdistill.models.alignment import permutations_to, permuted
from crossdistill.models.merging import Method, check_alike, check_read, merge
from crossdistill.run_folder.student_card import without_results
from crossdistill.run_folder.student_files import CARD, CONFIG, HEAD, RECORD, STUDENT_FOLDER, WEIGHTS, sealed
from crossdistill.runtime.files import NO_FILE, atomic_folder, file_fault, read_json
from crossdistill.runtime.hashing import file_hash
from crossdistill.runtime.tensor_file import first_three, not_finite, read_weights, write_tensors

INDEX = "model.safetensors.index.json"
OF_HEAD = f"{HEAD}: "
"""Beginning of the names of a head's weights among those of its model."""
COMPUTING = (
    *("num_attention_heads", "do_stable_layer_norm", "feat_extract_norm", "conv_stride", "hidden_act"),
    *("feat_extract_activation", "layer_norm_eps", "num_buckets", "max_bucket_distance"),
)
"""Settings of HuBERT and its kin that change what equal weights compute."""
CLIPS, SECONDS, RATE = 200, 5.0, 16_000
"""Clips, and seconds of each, whose activations align two networks; their rate in hertz."""


def merge_folders(
    parents: Sequence[Path],
    weights: Sequence[float],
    out: Path,
    *,
    base: Path | None = None,
    method: Method = "linear",
    layers: Mapping[str, Sequence[float]] | None = None,
    keep: float | None = None,
    scale: float | None = None,
    permute: Path | None = None,
) -> Path:
    """Merge students into a folder that loads as its first parent does; see `models.merging.merge`.

    `permute` is a manifest, or a folder of recordings: the units of all networks are first put into the order of the
    first one's (`models.alignment`). Task vectors have no such order, so that a base excludes it.

    Raises:
        RunError: a folder is no student's, or `out` exists.
        DataError: weights of a folder are damaged, or NaN or infinite; names the folder and the tensor.
        SettingError: weights, base or layers do not fit, the method does not read a setting, the networks compute
            otherwise with equal weights, or they cannot be aligned.
        ShapeError: the networks have different shapes; names the first key.
    """
    check_read(method, base=base is not None, keep=keep, scale=scale, permute=permute is not None)
    if out.exists():
        raise RunError(f"{out} exists; name another folder by --out")
    folders = [_folder(path) for path in parents]
    for folder in folders[1:] if base is None else [*folders[1:], _folder(base)]:
        _check_settings(folders[0], folder)
    states = [_weights(folder) for folder in folders]
    start = None if base is None else _weights(_folder(base))
    if permute is not None:
        for number, state in enumerate(states[1:], 2):
            check_alike(states[0], state, f"network {number}")
        waves = clips_of(permute)
        reference = _network(folders[0])
        orders = [permutations_to(reference, _network(folder), waves) for folder in folders[1:]]
        states[1:] = [permuted(state, order) for state, order in zip(states[1:], orders, strict=True)]
    merged = merge(states, weights, base=start, method=method, layers=layers, keep=keep, scale=scale)
    with atomic_folder(out) as temporary:
        for file in sorted(folders[0].iterdir()):
            if file.is_file() and file.name not in (WEIGHTS, HEAD) and not file.name.startswith("."):
                shutil.copyfile(file, temporary / file.name)
        if (temporary / CARD).is_file():
            shown = ", ".join(f"{weight:g}" for weight in weights)
            head = f"> Merged from {len(folders)} students ({method}, weights {shown}); below is the card of the first."
            card = (temporary / CARD).read_text(encoding="utf-8")
            (temporary / CARD).write_text(f"{head}\n\n{without_results(card)}", encoding="utf-8")
        tensors = {key: value.contiguous() for key, value in merged.items()}
        beside = {key: tensors.pop(key) for key in list(tensors) if key.startswith(OF_HEAD)}
        write_tensors(temporary / WEIGHTS, tensors, {"format": "pt"})
        if beside:
            of_head = {key.removeprefix(OF_HEAD): value for key, value in beside.items()}
            write_tensors(temporary / HEAD, of_head, {"format": "pt"})
        for file in temporary.glob("*.json"):
            _seal(file, temporary)
    return out


def clips_of(data: Path) -> list[Tensor]:
    """Waves (1, samples) at 16 kHz, of a seeded choice of a manifest's or a folder's recordings.

    Raises:
        DataError: none can be read.
        MissingExtraError: soundfile, or PyAV for files that it does not read, is not installed.
    """
    if data.suffix.lower() in TABLES:
        cells = read_table(data, "utf-8", None).column("path", "permute")
        paths = [data.absolute().parent / str(cell) for cell in cells]
    else:
        paths = [Path(path) for path in sounds_in(data.absolute())]
    order = np.random.default_rng(0).permutation(len(paths)).tolist()[:CLIPS]
    waves, why = [], ""
    for number in order:
        try:
            wave, rate = decode_part(paths[number], 0.0, SECONDS)
        except DataError as error:
            why = str(error)
            continue
        wave = resample(wave, rate, RATE)
        # Two frames of a HuBERT-like network, so that frames vary.
        if len(wave) >= 720:
            waves.append(torch.from_numpy(wave - wave.mean())[None])
    if not waves:
        raise DataError(f"{data}: no recording can be read: {why or 'all are shorter than 720 samples'}")
    return waves


def _folder(path: Path) -> Path:
    """The folder of a student's weights: that of a run, or the folder itself."""
    for folder in (path / STUDENT_FOLDER, path):
        if (folder / WEIGHTS).is_file() and file_fault(folder / CONFIG) is None:
            return folder
    if (path / INDEX).is_file():
        raise RunError(f"{path}: its weights are in several files; save them in one ({WEIGHTS}) to merge them")
    raise RunError(
        f"{path}: is no folder of a student: wanted {CONFIG} and {WEIGHTS}, in it or in its {STUDENT_FOLDER}"
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder's model by their names there, and of the head beside it."""
    weights = read_weights(folder / WEIGHTS)
    if file_fault(folder / HEAD) != NO_FILE and file_fault(folder / RECORD) != NO_FILE:
        weights |= {f"{OF_HEAD}{key}": value for key, value in read_weights(folder / HEAD).items()}
    faults = not_finite(weights)
    if faults:
        raise DataError(f"{folder}: {first_three(faults)}: a merged student would hold NaN too; leave this folder out")
    return weights


def _check_settings(first: Path, other: Path) -> None:
    """Refuse networks of transformers that compute differently with equal weights."""
    mine, theirs = _settings(first), _settings(other)
    for name in COMPUTING:
        if name in mine and name in theirs and mine[name] != theirs[name]:
            raise SettingError(
                f"merge: {name} is {mine[name]} in {first} and {theirs[name]} in {other}; networks that compute alike "
                "are merged"
            )


def _settings(folder: Path) -> Mapping[str, Any]:
    """The configuration of a network of transformers; empty for others."""
    try:
        content: Any = read_json(folder / CONFIG)
        settings: dict[str, Any] = content if "model_type" in content else content["model"]["options"]["body"]["config"]
        return settings
    except (ValueError, KeyError, TypeError):
        # Other networks of this library; what is damaged is reported where it is read.
        return {}


def _network(folder: Path) -> torch.nn.Module:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise MissingExtraError("aligning networks", "transformers", "transformers") from error
    try:
        network: torch.nn.Module = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError) as error:
        raise SettingError(
            f"{folder}: units are aligned of Hugging Face folders of networks like HuBERT, and this is none: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return network.eval()


def _seal(file: Path, folder: Path) -> None:
    """Write the hashes of the merged weights into a config of this library."""
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, dict) and "checksum" in content and WEIGHTS in content.get("files", {}):
        for name in (WEIGHTS, HEAD):
            if name in content["files"]:
                content["files"][name] = file_hash(folder / name)
        file.write_text(sealed(content), encoding="utf-8")

"""Features of recordings from a frozen network, computed once: means of each layer for a clip, or all its frames."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.data import cache
from crossdistill.data.audio.any_sound import decode_sound
from crossdistill.data.audio.sound_file import resample
from crossdistill.data.rendering import Sound
from crossdistill.errors import DataError, NonFiniteError
from crossdistill.probes import frozen as frozen_module
from crossdistill.probes.clips import Clip
from crossdistill.probes.frozen import SHORTEST, Frozen
from crossdistill.runtime.hashing import key_hash
from crossdistill.runtime.progress import Display, Quiet
from crossdistill.runtime.tensor_file import read_weights, write_tensors

ENTRY, VERSION = "probe-features", 2
TOGETHER, AHEAD = 16, 64
"""Clips of one length in a pass, and clips that are decoded before they are grouped by length."""
LONGEST = 30.0
"""Seconds; a longer clip is computed in equal parts, since attention takes memory with the square of the length."""
THREADS = 2
FRAMES, POOLED = "frames.float32", "pooled.safetensors"


def pooled_features(
    frozen: Frozen, clips: Sequence[Clip], device: torch.device, display: Display | None = None
) -> Float[Tensor, "N L D"]:
    """Mean over the frames of each layer for each clip (N, L, D), from the cache where they were computed before.

    Clips of equal length alone are computed together, so that no padding reaches the network: the values are those of
    single clips, also of networks that normalise over time.

    Raises:
        DataError: a recording cannot be read; names it.
        NonFiniteError: a feature is NaN or infinite; names the clip.
    """

    def build(folder: Path) -> None:
        rows: list[Tensor] = [torch.empty(0)] * len(clips)
        for row, states in _computed(frozen, clips, device, display or Quiet()):
            rows[row] = states.mean(0)
        write_tensors(folder / POOLED, {"features": torch.stack(rows)})

    folder = cache.keep(ENTRY, _recipe(frozen, clips, "pooled", frozen.layers), build)
    return read_weights(folder / POOLED)["features"]


def frame_features(
    frozen: Frozen, clips: Sequence[Clip], device: torch.device, display: Display | None = None
) -> list[Float[Tensor, "T L D"]]:
    """All frames (T, L, D) of each clip, mapped from a file of the cache, so that they need not fit into memory.

    Raises:
        DataError: as of `pooled_features`.
        NonFiniteError: as of `pooled_features`.
    """

    def build(folder: Path) -> None:
        lengths = torch.zeros(len(clips), dtype=torch.int64)
        order, layers, width = [], 0, 0
        with (folder / FRAMES).open("wb") as file:
            for row, states in _computed(frozen, clips, device, display or Quiet()):
                file.write(np.ascontiguousarray(states.numpy(), dtype=np.float32).data)
                lengths[row], (layers, width) = len(states), states.shape[1:]
                order.append(row)
        shape = torch.tensor([layers, width])
        write_tensors(folder / POOLED, {"lengths": lengths, "order": torch.tensor(order), "shape": shape})

    folder = cache.keep(ENTRY, _recipe(frozen, clips, "frames", frozen.layers), build)
    facts = read_weights(folder / POOLED)
    layers, width = facts["shape"].tolist()
    # Mapped copy-on-write: torch wants writable memory, and nothing is written.
    flat = torch.from_numpy(np.memmap(folder / FRAMES, np.float32, mode="c").reshape(-1, layers, width))
    frames: list[Tensor] = [torch.empty(0)] * len(clips)
    start = 0
    for row in facts["order"].tolist():
        frames[row] = flat[start : start + int(facts["lengths"][row])]
        start += int(facts["lengths"][row])
    return frames


def _recipe(frozen: Frozen, clips: Sequence[Clip], what: str, layers: Sequence[str]) -> dict[str, object]:
    """The key of features: code, weights, preparation and layers, and each file with its size, time and part."""
    files = []
    for clip in clips:
        status = clip.path.stat()
        files.append([str(clip.path.resolve()), status.st_size, status.st_mtime_ns, clip.start, clip.seconds])
    return {
        "version": VERSION,
        # Decoding, resampling and the cutting of parts change features as weights do.
        "code": [cache.code_key(), cache.content_key([Path(__file__), Path(frozen_module.__file__)])],
        "network": frozen.weights,
        "preparation": frozen.key,
        "layers": list(layers),
        "what": what,
        "clips": key_hash(files),
    }


def _computed(
    frozen: Frozen, clips: Sequence[Clip], device: torch.device, display: Display
) -> Iterator[tuple[int, Float[Tensor, "T L D"]]]:
    """The row and the states of each clip, in no order."""
    network = frozen.network.to(device)
    display.begin(f"features of {frozen.name}", len(clips))
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(clips), AHEAD):
            some = clips[start : start + AHEAD]
            alike: dict[int, list[tuple[int, Tensor]]] = {}
            for row, wave in enumerate(threads.map(lambda clip: wave_of(clip, frozen.rate), some), start):
                alike.setdefault(len(wave), []).append((row, wave))
            for group in alike.values():
                for first in range(0, len(group), TOGETHER):
                    part = group[first : first + TOGETHER]
                    states = _states(frozen, [wave for _, wave in part], device)
                    for (row, _), value in zip(part, states, strict=True):
                        if not bool(value.isfinite().all()):
                            raise NonFiniteError(
                                f"{frozen.name} gives features that are NaN or Inf for {clips[row].path}"
                            )
                        yield row, value
            display.advance(len(some))
    network.to("cpu")
    display.end()


def _states(frozen: Frozen, waves: Sequence[Tensor], device: torch.device) -> Float[Tensor, "B T L D"]:
    """The states of waves of one length; of long ones, those of equal parts one after another."""
    parts = -(-len(waves[0]) // round((frozen.seconds or LONGEST) * frozen.rate))
    size = -(-len(waves[0]) // parts)
    pieces = []
    for start in range(0, len(waves[0]), size):
        cut = [wave[start : start + size] for wave in waves]
        pieces.append(frozen.states([Sound(wave, frozen.rate) for wave in cut], device))
    return torch.cat(pieces, 1)


def wave_of(clip: Clip, rate: int) -> Float[Tensor, " samples"]:
    """A clip as a mono wave at a rate in hertz, at least 0.1 s long.

    Raises:
        DataError: it cannot be read, or nothing of it is in the part; names the file.
    """
    wave, source_rate = decode_sound(clip.path)
    start = round(clip.start * source_rate)
    end = len(wave) if clip.seconds is None else min(len(wave), start + round(clip.seconds * source_rate))
    if start >= end:
        length = "" if clip.seconds is None else f" of {clip.seconds:g} s"
        raise DataError(
            f"{clip.path}: the part{length} from {clip.start:g} s on is empty: the recording has "
            f"{len(wave) / source_rate:g} s; correct start and duration"
        )
    values = torch.from_numpy(resample(wave[start:end], source_rate, rate))
    return torch.nn.functional.pad(values, (0, max(0, round(SHORTEST * rate) - len(values))))

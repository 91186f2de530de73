"""Reads sound of any file: those of libsndfile directly, others (m4a, aac, mp4, ...) through PyAV."""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.audio.sound_file import SOUND_SUFFIXES, read_part, read_sound
from crossdistill.data.input_options import MOST_SAMPLES
from crossdistill.errors import DataError, MissingExtraError
from crossdistill.runtime.files import file_fault

PLAIN = (*SOUND_SUFFIXES, ".aif", ".aiff", ".au")
THROUGH_AV = (".m4a", ".aac", ".opus", ".wma", ".mp4", ".mov", ".mkv", ".webm", ".avi", ".3gp")
SOUND_FILES = (*PLAIN, *THROUGH_AV)


def decode_sound(path: Path) -> tuple[NDArray[np.float32], int]:
    """One recording as mono samples in [-1, 1], and its rate in hertz.

    Raises:
        DataError: the file is missing, unreadable, truncated, or has no sound; names it.
        MissingExtraError: soundfile, or PyAV for files that it does not read, is not installed.
    """
    return _through_av(path) if path.suffix.lower() in THROUGH_AV else read_sound(path)


def decode_part(path: Path, start: float, seconds: float) -> tuple[NDArray[np.float32], int]:
    """A part of a recording as mono samples in [-1, 1], and its rate in hertz; see `read_part`.

    Files that libsndfile does not read are decoded from their beginning to the end of the part, since many of them
    cannot be entered at an exact sample.

    Raises:
        DataError: the file is missing, unreadable or truncated, or the part is empty or holds NaN; names it.
        MissingExtraError: soundfile, or PyAV for files that it does not read, is not installed.
    """
    if path.suffix.lower() not in THROUGH_AV:
        return read_part(path, start, seconds)
    wave, rate = _through_av(path, start + seconds)
    first = int(start * rate)
    part = wave[first : first + max(1, int(seconds * rate + 1e-6))]
    if not len(part):
        raise DataError(f"{path}: holds no samples from second {start:g} on")
    return part.copy(), rate


def check_packages(paths: Iterable[str]) -> None:
    """Check that the package is installed that reads the files which libsndfile does not.

    Raises:
        MissingExtraError: it is not.
    """
    found = next((path for path in paths if path.lower().endswith(THROUGH_AV)), None)
    if found is not None:
        _av(Path(found))


def _av(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(f"reading {path.suffix} files", "av", "video") from error
    module: ModuleType = av
    return module


def _through_av(path: Path, until: float | None = None) -> tuple[NDArray[np.float32], int]:
    """The whole recording, or what it holds up to second `until` at least."""
    av = _av(path)
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    parts, held, rate = [], 0, 0
    try:
        # The path as a file, so that it is never taken for an address on the network.
        with path.open("rb") as file, av.open(file, mode="r") as container:
            if not container.streams.audio:
                raise DataError(f"{path}: has no sound")
            stream = container.streams.audio[0]
            rate = int(stream.rate)
            mono = av.AudioResampler(format="fltp", layout="mono", rate=rate)
            for frame in container.decode(stream):
                new = [part.to_ndarray()[0] for part in mono.resample(frame)]
                parts += new
                held += sum(map(len, new))
                if held > MOST_SAMPLES:
                    raise DataError(f"{path}: holds more than {MOST_SAMPLES:,} samples: cut it into parts")
                if until is not None and held > until * rate:
                    break
            parts += [part.to_ndarray()[0] for part in mono.resample(None)]
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable sound file: {' '.join(str(error).split())[:200]}") from error
    wave = np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
    if not len(wave):
        raise DataError(f"{path}: holds no samples")
    if not np.isfinite(wave).all():
        raise DataError(f"{path}: holds NaN or Inf")
    return wave, rate

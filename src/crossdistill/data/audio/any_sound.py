"""Reads sound of any file: those of libsndfile directly, others (m4a, aac, mp4, ...) through PyAV."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.audio.sound_file import SOUND_SUFFIXES, read_sound
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


def _through_av(path: Path) -> tuple[NDArray[np.float32], int]:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(f"reading {path.suffix} files", "av", "video") from error
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
                parts += [part.to_ndarray()[0] for part in mono.resample(frame)]
                held += frame.samples
                if held > MOST_SAMPLES:
                    raise DataError(f"{path}: holds more than {MOST_SAMPLES:,} samples: cut it into parts")
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

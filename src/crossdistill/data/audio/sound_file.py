"""Reads recordings (wav, flac, ogg, mp3) and detects truncated ones."""

import logging
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.input_options import HIGHEST_RATE, LOWEST_RATE, MOST_SAMPLES
from crossdistill.errors import DataError, MissingExtraError
from crossdistill.runtime.escaping import visible
from crossdistill.runtime.files import file_fault

log = logging.getLogger("crossdistill")

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")

BLOCK_NUMBERS = 2**20
"""Numbers, over all channels, that are read at once."""
CANCELLED = 1e-4
"""Share of the channels' mean power below which their mean is silence: 40 decibels less."""

_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)
"""Lengths that streaming writers leave in a wav header."""


def read_sound(path: Path, sample_rate: int | None = None) -> tuple[NDArray[np.float32], int]:
    """One recording as mono samples in [-1, 1], resampled to `sample_rate` if that is given, and its rate in hertz.

    Raises:
        DataError: the file is missing, unreadable, truncated, empty or holds NaN; names it.
        MissingExtraError: soundfile, or soxr where the rate changes, is not installed.
    """
    soundfile = _import("soundfile", "reading recordings")
    fault = file_fault(path)
    if fault is not None:
        raise DataError(f"{path}: {fault}")
    _check_complete(path)
    try:
        with soundfile.SoundFile(str(path)) as stream:
            rate = int(stream.samplerate)
            _check_promise(path, rate, int(stream.frames))
            mono = _mono(path, stream)
            promised = int(stream.frames)
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable sound file: {error}") from error
    # The length of an mp3 is an estimate of its decoder.
    if path.suffix.lower() != ".mp3" and len(mono) < promised:
        raise DataError(f"{path}: truncated: it promises {promised:,} samples and holds {len(mono):,}")
    if len(mono) == 0:
        raise DataError(f"{path}: holds no samples")
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: holds NaN or Inf")
    if sample_rate is None or sample_rate == rate:
        return mono, rate
    return resample(mono, rate, int(sample_rate)), int(sample_rate)


def read_part(path: Path, start: float, seconds: float) -> tuple[NDArray[np.float32], int]:
    """A part of a recording as mono samples in [-1, 1], and its rate in hertz; other parts are not decoded.

    `start` and `seconds` are its place and length; a part that ends behind the recording is shorter.

    Raises:
        DataError: the file is missing, unreadable or truncated, or the part is empty or holds NaN; names it.
        MissingExtraError: soundfile is not installed.
    """
    soundfile = _import("soundfile", "reading recordings")
    try:
        if path.suffix.lower() in (".wav", ".ogg"):
            _check_complete(path)
        with soundfile.SoundFile(str(path)) as stream:
            rate = int(stream.samplerate)
            _check_promise(path, rate, int(stream.frames))
            if start > 0:
                stream.seek(min(int(start * rate), int(stream.frames)))
            mono = _mono(path, stream, max(1, int(seconds * rate + 1e-6)))
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        fault = file_fault(path)
        raise DataError(f"{path}: {fault or f'not a readable sound file: {error}'}") from error
    if len(mono) == 0:
        raise DataError(f"{path}: holds no samples from second {start:g} on")
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: holds NaN or Inf")
    return mono, rate


def read_header(path: Path) -> tuple[int, int]:
    """Samples and rate in hertz of a recording, from its header.

    Raises:
        DataError: it is not readable, or truncated; names it.
        MissingExtraError: soundfile is not installed.
    """
    soundfile = _import("soundfile", "reading recordings")
    try:
        _check_complete(path)
        with soundfile.SoundFile(str(path)) as stream:
            rate, samples = int(stream.samplerate), int(stream.frames)
            _check_promise(path, rate, samples)
            return samples, rate
    except (RuntimeError, TypeError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable sound file: {error}") from error


def _check_promise(path: Path, rate: int, samples: int) -> None:
    """Check the rate and length in a header, since they determine the allocated memory.

    Raises:
        DataError: one is out of range, or the length is unknown.
    """
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise DataError(f"{path}: its header has a rate of {rate:,} Hz; wanted {LOWEST_RATE:,} to {HIGHEST_RATE:,} Hz")
    if path.suffix.lower() == ".mp3" or samples <= MOST_SAMPLES:
        return
    if samples >= 2**62:
        raise DataError(f"{path}: its header has no length, as in files from a stream; save the recording again")
    raise DataError(f"{path}: its header has {samples:,} samples; at most {MOST_SAMPLES:,} are read: cut it into parts")


def _mono(path: Path, stream: Any, most: int | None = None) -> NDArray[np.float32]:
    """The mean of all channels of at most `most` samples, read in parts; warns if channels cancel each other.

    Raises:
        DataError: the recording is too long.
    """
    parts, held = [], 0
    loud, left = 0.0, 0.0
    at_once = BLOCK_NUMBERS // stream.channels
    while (due := at_once if most is None else min(at_once, most - held)) and len(
        block := stream.read(due, dtype="float32", always_2d=True)
    ):
        parts.append(block[:, 0] if stream.channels == 1 else block.mean(1, dtype=np.float32))
        held += len(block)
        if held > MOST_SAMPLES:
            raise DataError(f"{path}: more than {MOST_SAMPLES:,} samples; cut it into parts")
        if stream.channels == 1:
            continue
        with np.errstate(all="ignore"):
            loud += float(np.square(block, dtype=np.float64).mean(1).sum())
            left += float(np.square(parts[-1], dtype=np.float64).sum())
    if stream.channels > 1 and left < CANCELLED * loud:
        log.warning(
            "%s: its %d channels cancel each other: their mean, which is read, has %.2g of their power. Is one of them "
            "inverted? Save one channel alone",
            visible(str(path)),
            stream.channels,
            left / loud,
        )
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def resample(wave: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """The sound at another sample rate; rates are in hertz (soxr, high quality).

    Raises:
        MissingExtraError: soxr is not installed.
    """
    if rate == new_rate:
        return wave
    soxr = _import("soxr", "resampling")
    return np.asarray(soxr.resample(wave, rate, new_rate), dtype=np.float32)


def _import(package: str, what: str) -> ModuleType:
    try:
        return __import__(package)
    except ImportError as error:
        raise MissingExtraError(what, package, "audio") from error


def _check_complete(path: Path) -> None:
    """Compare a file's size with the length in its header: libsndfile reads truncated files without an error.

    Raises:
        DataError: the file is truncated.
    """
    with path.open("rb") as stream:
        start = stream.read(4)
        size = path.stat().st_size
        if start == b"RIFF":
            _check_wav(path, size)
        elif start == b"OggS":
            _check_ogg(path, size)


def _check_wav(path: Path, size: int) -> None:
    with path.open("rb") as stream:
        stream.seek(12)
        while len(header := stream.read(8)) == 8:
            kind, length = struct.unpack("<4sI", header)
            if kind == b"data":
                held = size - stream.tell()
                if length not in _UNKNOWN_LENGTHS and held < length:
                    raise DataError(f"{path}: truncated: it promises {length:,} bytes of sound and holds {held:,}")
                return
            stream.seek(length + length % 2, 1)
    raise DataError(f"{path}: truncated: it ends before its sound begins")


def _check_ogg(path: Path, size: int) -> None:
    """Check that the last page of the stream is complete and has the end-of-stream flag."""
    with path.open("rb") as stream:
        stream.seek(max(0, size - 2**17))
        tail = stream.read()
    page = tail.rfind(b"OggS")
    complete = False
    if page >= 0 and len(tail) >= page + 27:
        flags, segments = tail[page + 5], tail[page + 26]
        table = tail[page + 27 : page + 27 + segments]
        complete = bool(flags & 4) and len(table) == segments and len(tail) - page - 27 - segments >= sum(table)
    if not complete:
        raise DataError(f"{path}: truncated: its last page is not the end of its stream")

"""Synthesises speech by eSpeak NG in child processes, which return wavs."""

import functools
import importlib.util
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import crossdistill
from crossdistill.errors import DataError, MissingExtraError

PACKAGE = "espeakng-loader"
LICENCE = "GPL-3.0-or-later (eSpeak NG; the speech that it makes is not covered)"
WORKER = "crossdistill.data.audio.espeak_worker"
MOST_WORKERS = 4

ACCENTS = ("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
"""The English accents that work."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text to synthesise once; `pitch` is eSpeak's number from 0 to 99, where 50 is the voice's default."""

    text: str
    words_per_minute: int
    pitch: int


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice variant with an accent, and its utterances."""

    accent: str
    variant: str
    utterances: tuple[Utterance, ...]


def synthesiser_version() -> str:
    """The installed version of the synthesiser, on which the samples depend.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise MissingExtraError("synthesising speech", PACKAGE, "demo")
    return version(PACKAGE)


@functools.cache
def list_variants() -> tuple[str, ...]:
    """All distinct voice variants: of variants with identical samples for a test word, the first."""
    synthesiser_version()
    names = json.loads(_run_worker({"variants": True}))
    probe = (Utterance("seven", 175, 50),)
    distinct: dict[bytes, str] = {}
    clips = synthesise([Speaker("en", name, probe) for name in names], lambda done: None)[0]
    for name, clip in zip(names, clips, strict=True):
        distinct.setdefault(clip.tobytes(), name)
    return tuple(sorted(distinct.values()))


def synthesise(
    speakers: Sequence[Speaker],
    progress: Callable[[int], None],
    *,
    most_workers: int = MOST_WORKERS,
    worker: str = WORKER,
) -> tuple[list[NDArray[np.int16]], int]:
    """All utterances of all speakers in order, as 16-bit samples, and their rate in hertz.

    A few child processes share the speakers. Each loads its own library, so the samples do not depend on the number of
    processes. `progress` is called with the number of finished utterances.

    Raises:
        MissingExtraError: the synthesiser is not installed.
        DataError: a child process failed; quotes its last lines.
    """
    synthesiser_version()
    workers = max(1, min(most_workers, os.cpu_count() or 1, len(speakers) // 8))
    bounds = [len(speakers) * i // workers for i in range(workers + 1)]
    shares = [speakers[a:b] for a, b in itertools.pairwise(bounds)]
    counts = [0] * workers
    results: list[list[tuple[NDArray[np.int16], int]]] = [[] for _ in shares]
    failures: list[Exception] = []

    def collect(number: int) -> None:
        def add(clip: tuple[NDArray[np.int16], int]) -> None:
            results[number].append(clip)
            counts[number] += 1
            progress(sum(counts))

        try:
            _speak(shares[number], add, worker)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=collect, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    clips = [clip for share in results for clip in share]
    return [samples for samples, _ in clips], clips[0][1] if clips else 0


def _request(speakers: Sequence[Speaker]) -> dict[str, Any]:
    return {
        "speakers": [
            {
                "voice": f"{speaker.accent}+{speaker.variant}",
                "clips": [[u.text, u.words_per_minute, u.pitch] for u in speaker.utterances],
            }
            for speaker in speakers
        ]
    }


def _start_worker(module: str = WORKER) -> "subprocess.Popen[bytes]":
    # The child imports the same package, whatever import path the parent has.
    package = str(Path(crossdistill.__file__).parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _run_worker(request: dict[str, Any]) -> bytes:
    with _start_worker() as process:
        out, errors = process.communicate(json.dumps(request).encode())
    if process.returncode:
        raise _failure(process.returncode, errors)
    return out


def _speak(speakers: Sequence[Speaker], add: Callable[[tuple[NDArray[np.int16], int]], None], worker: str) -> None:
    wanted = sum(len(speaker.utterances) for speaker in speakers)
    with _start_worker(worker) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors: list[bytes] = []
        # A thread reads stderr, since a child blocks once this pipe is full.
        reader = threading.Thread(target=lambda stream: errors.append(stream.read()), args=(process.stderr,))
        reader.start()
        try:
            try:
                process.stdin.write(json.dumps(_request(speakers)).encode())
                process.stdin.close()
            except BrokenPipeError:
                wanted = 0
            done = 0
            while done < wanted and len(header := process.stdout.read(4)) == 4:
                content = process.stdout.read(struct.unpack("<I", header)[0])
                add(_parse(content))
                done += 1
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            reader.join()
    if process.returncode or done < wanted:
        raise _failure(process.returncode, b"".join(errors))


def _parse(content: bytes) -> tuple[NDArray[np.int16], int]:
    with wave.open(io.BytesIO(content), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.int16), file.getframerate()


def _failure(code: int, errors: bytes) -> DataError:
    lines = errors.decode(errors="replace").strip().splitlines()[-3:]
    return DataError(
        f"speech synthesis: the child process ended with {code}: {' | '.join(lines) or '(no error output)'}"
    )

"""The child process that synthesises speech: the only place that loads eSpeak NG (GPL-3).

`python -m crossdistill.data.audio.espeak_worker` reads one JSON request from standard input and writes wavs to standard
output, each preceded by its length (4 bytes, little endian). A request is `{"variants": true}`, answered by one JSON
list of the voice variants, or `{"speakers": [{"voice": "en+f1", "clips": [[text, words per minute, pitch], ...]}]}`,
answered by one wav for each clip in the order of the request. Only the standard library is imported.

eSpeak NG keeps state between utterances that no call resets, and some voices use the C library's `rand`. The library is
therefore unloaded and loaded again for each speaker, and `rand` is seeded: a speaker's clips are bit-identical whatever
was synthesised before. Variants with breath are left out, since they read uninitialised memory.
"""

import _ctypes
import ctypes
import io
import json
import struct
import sys
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import espeakng_loader

# speak_lib.h
SYNCHRONOUS = 2
DONT_EXIT = 0x8000
RATE, PITCH = 1, 3
AT_CHARACTER = 1
UTF8 = 1

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """A freshly loaded library with one voice."""

    def __init__(self, library: ctypes.CDLL, voice: str) -> None:
        self.library = library
        self.sample_rate = int(
            library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), DONT_EXIT)
        )
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG did not start: {self.sample_rate}")
        self._samples: list[bytes] = []

        def receive(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                self._samples.append(ctypes.string_at(samples, 2 * count))
            return 0

        # The library keeps only an address: this reference keeps the callback alive.
        self._callback = _CALLBACK(receive)
        library.espeak_SetSynthCallback(self._callback)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")

    def say(self, text: str, words_per_minute: int, pitch: int) -> bytes:
        """The text as 16-bit samples."""
        self.library.espeak_SetParameter(RATE, words_per_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self._samples.clear()
        content = text.encode() + b"\0"
        failed = self.library.espeak_Synth(content, ctypes.c_size_t(len(content)), 0, AT_CHARACTER, 0, UTF8, None, None)
        if failed:
            raise RuntimeError(f"eSpeak NG could not say {text!r}: {failed}")
        self.library.espeak_Synchronize()
        return b"".join(self._samples)


@contextmanager
def fresh_speaker(voice: str) -> Iterator[Speaker]:
    """A speaker with its own instance of the library, which is unloaded afterwards."""
    (ctypes.cdll.ucrtbase if sys.platform == "win32" else ctypes.CDLL(None)).srand(1)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    handle = library._handle
    try:
        yield Speaker(library, voice)
    finally:
        library.espeak_Terminate()
        del library
        close = getattr(_ctypes, "FreeLibrary", None) or _ctypes.dlclose
        close(handle)


def variants() -> list[str]:
    """The names of the voice variants whose output is reproducible."""
    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if b"\nbreath" not in path.read_bytes())


def speak(speakers: Sequence[Any], out: BinaryIO) -> None:
    """Write one wav for every clip of every speaker."""
    for request in speakers:
        with fresh_speaker(request["voice"]) as speaker:
            for text, words_per_minute, pitch in request["clips"]:
                buffer = io.BytesIO()
                with wave.open(buffer, "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(speaker.sample_rate)
                    file.writeframes(speaker.say(text, words_per_minute, pitch))
                content = buffer.getvalue()
                out.write(struct.pack("<I", len(content)) + content)
    out.flush()


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    if request.get("variants"):
        json.dump(variants(), sys.stdout)
    else:
        speak(request["speakers"], sys.stdout.buffer)


if __name__ == "__main__":
    main()

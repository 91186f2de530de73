"""The tasks of probes by name: the reader of the official layout, what is predicted, and the metric."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from crossdistill.errors import DataError, SettingError, nearest
from crossdistill.probes.clips import Kind, ProbeData, Reader


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """One task: its name, the reader as `module:function` of `probes.sets`, the metric and what is predicted."""

    name: str
    reader: str
    about: str
    metric: Literal["accuracy", "key-score", "r2", "wer"] = "accuracy"

    @property
    def kind(self) -> Kind:
        """What the probe predicts."""
        kinds: Mapping[str, Kind] = {"r2": "numbers", "wer": "text"}
        return kinds.get(self.metric, "classes")

    def read(self, root: Path) -> ProbeData:
        """The clips and their splits.

        Raises:
            DataError: the folder has another layout, or a recording is missing; the message says what was wanted.
        """
        module, _, function = self.reader.partition(":")
        reader: Reader = getattr(importlib.import_module(f"crossdistill.probes.sets.{module}"), function)
        try:
            data = reader(root.expanduser())
        except DataError as error:
            raise DataError(f"task {self.name!r}: {error}") from error
        absent = [clip for clip in data.clips if not clip.path.is_file()]
        if absent:
            raise DataError(
                f"task {self.name!r}: {len(absent):,} of {len(data.clips):,} recordings are missing: {absent[0].path}"
            )
        return data


_TASKS = (
    ProbeTask("keyword-spotting", "speech_commands:read", "Speech Commands, 12 classes"),
    ProbeTask("intent", "fluent_speech:read", "Fluent Speech Commands, all three slots right"),
    ProbeTask("iemocap-emotion", "emotion:iemocap", "IEMOCAP, 4 classes, a fold for each session"),
    ProbeTask("ravdess-emotion", "emotion:ravdess", "RAVDESS, 8 classes, five folds of actors"),
    ProbeTask("voxceleb-speaker", "speaker:voxceleb", "VoxCeleb1, identification split"),
    ProbeTask("ravdess-speaker", "speaker:ravdess", "RAVDESS, actors across emotions"),
    ProbeTask("vocalset-singer", "vocalset:singers", "VocalSet, 20 singers"),
    ProbeTask("vocalset-technique", "vocalset:techniques", "VocalSet, 10 techniques of other singers"),
    ProbeTask("nsynth-pitch", "notes:nsynth_pitch", "NSynth, MIDI numbers"),
    ProbeTask("nsynth-instrument", "notes:nsynth_instrument", "NSynth, 11 families"),
    ProbeTask("philharmonia-instrument", "notes:philharmonia_instrument", "Philharmonia notes, instruments"),
    ProbeTask("philharmonia-pitch", "notes:philharmonia_pitch", "Philharmonia notes, pitches"),
    ProbeTask("gtzan-genre", "music:gtzan", "GTZAN, 10 genres, artist-filtered where the lists are there"),
    ProbeTask("giantsteps-key", "music:giantsteps", "GiantSteps, 24 keys", "key-score"),
    ProbeTask("emomusic", "music:emomusic", "EmoMusic, arousal and valence", "r2"),
    ProbeTask("esc50", "environment:esc50", "ESC-50, five folds"),
    ProbeTask("esc10", "environment:esc10", "ESC-10, five folds"),
    ProbeTask("spoken-digit", "digits:digit", "Free Spoken Digit Dataset, digits"),
    ProbeTask("digit-speaker", "digits:speaker", "Free Spoken Digit Dataset, speakers"),
    ProbeTask("librispeech-asr", "librispeech:read", "LibriSpeech, letters by CTC", "wer"),
    ProbeTask("manifest", "manifest:classes", "a table with path and target: classes"),
    ProbeTask("manifest-numbers", "manifest:numbers", "a table with path and target: a number", "r2"),
    ProbeTask("manifest-texts", "manifest:texts", "a table with path and target: a text, by CTC", "wer"),
)
TASKS: Mapping[str, ProbeTask] = MappingProxyType({task.name: task for task in _TASKS})


def find_task(name: str) -> ProbeTask:
    """A task by name.

    Raises:
        SettingError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise SettingError(f"no probe is called {name!r}; {nearest(name, TASKS)}")
    return TASKS[name]

"""Emotion of speech: IEMOCAP (Busso et al., 2008) by session, RAVDESS (Livingstone and Russo, 2018) by actor."""

import re
from pathlib import Path

from crossdistill.probes.clips import ProbeData, clip_of, crossed, layout_error, named_sounds, sound_named

IEMOCAP = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}
"""The four classes of SUPERB; excitement counts as happy."""
LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(?P<name>\S+)\t(?P<emotion>\w+)\t")

RAVDESS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
NAME = re.compile(r"\d\d-\d\d-(?P<emotion>0[1-8])-\d\d-(?P<sentence>\d\d)-(?P<repetition>\d\d)-(?P<actor>\d\d)")
RAVDESS_FOLDS = 5


def iemocap(root: Path) -> ProbeData:
    """Four emotions; a fold for each session, whose test has other speakers than its training.

    Raises:
        DataError: another layout, or a listed recording is missing.
    """
    clips, sessions = [], []
    for file in sorted(root.glob("Session*/dialog/EmoEvaluation/*.txt")):
        session = file.parents[2]
        for line in LINE.finditer(file.read_text(encoding="utf-8", errors="replace")):
            if line["emotion"] in IEMOCAP:
                dialogue = line["name"].rpartition("_")[0]
                path = sound_named(session / "sentences" / "wav" / dialogue / line["name"])
                if path is None:
                    raise layout_error(session, f"sentences/wav/{dialogue}/{line['name']}.wav")
                clips.append(clip_of(path, root, IEMOCAP[line["emotion"]]))
                sessions.append(session.name)
    if not clips:
        raise layout_error(root, "Session1/dialog/EmoEvaluation/*.txt and Session1/sentences/wav/")
    remark = "other validation than SUPERB's, which takes a random fifth of the four sessions and trains on the rest"
    return crossed(clips, sessions, root, [clip.path.stem for clip in clips], remark)


def ravdess(root: Path) -> ProbeData:
    """Eight emotions of the file names; actors are dealt out to five folds, so that the test has other speakers.

    Raises:
        DataError: no file is named so, or all are of one actor.
    """
    named = named_sounds(root, NAME)
    if not named:
        raise layout_error(root, "Actor_01/03-01-EE-II-SS-RR-AA.wav (emotion, intensity, sentence, repetition, actor)")
    clips = [clip_of(path, root, RAVDESS[int(name["emotion"]) - 1]) for path, name in named]
    actors = sorted({name["actor"] for _, name in named})
    groups = [str(actors.index(name["actor"]) % RAVDESS_FOLDS) for _, name in named]
    remark = "RAVDESS has no official split: five folds of actors"
    return crossed(clips, groups, root, [name["sentence"] + name["repetition"] for _, name in named], remark)

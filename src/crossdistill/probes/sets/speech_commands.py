"""Speech Commands v0.01 and v0.02 (Warden, arXiv 1804.03209): keyword spotting in 12 classes, as in SUPERB."""

import hashlib
import re
from pathlib import Path

from crossdistill.data.audio.any_sound import decode_sound
from crossdistill.probes.clips import Clip, ProbeData, clip_of, divided, hashed, layout_error, sounds

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NOISE, SILENCE, UNKNOWN = "_background_noise_", "_silence_", "_unknown_"
MOST_OF_CLASS = 2**27 - 1
"""Divisor of hashes in the README of the data set."""
SHARE = 10.0
"""Percentage of the validation and of the test."""
REMARK = (
    "unknown words are thinned to the number of a known word, and the silence of each split is another part of each "
    "noise; SUPERB balances classes as it draws batches, and has all noise in training and validation"
)


def which_split(name: str) -> str:
    """The split of a file by the rule of the data set's README: recordings of one speaker stay together."""
    speaker = re.sub(r"_nohash_.*$", "", name)
    number = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    percentage = (number % (MOST_OF_CLASS + 1)) * (100.0 / MOST_OF_CLASS)
    return "validation" if percentage < SHARE else "test" if percentage < 2 * SHARE else "train"


def read(root: Path) -> ProbeData:
    """Ten words, unknown words and silence, split by the hash of the speaker.

    Unknown words are thinned to the mean number of a known word in each split, by hash. Silence is cut from the noise
    in pieces of one second: the first 80 % of each file train, the next 10 % are the validation. With a folder
    `speech_commands_test_set*` beside the words (12 folders of classes), that is the test, and the words' own test part
    is left out, as in SUPERB.

    Raises:
        DataError: another layout.
    """
    inside = [
        path for path in (root, *sorted(root.glob("speech_commands_v*"))) if all((path / w).is_dir() for w in WORDS)
    ]
    if not inside:
        raise layout_error(root, f"a folder for each word ({', '.join(WORDS[:3])}, ...) with wav files")
    folder = inside[0]
    test_folder = next(
        iter(sorted([*root.glob("speech_commands_test_set*"), *folder.parent.glob("speech_commands_test_set*")])), None
    )
    clips, splits = [], []
    for path in sounds(folder, "*/*"):
        word = path.parent.name
        if word.startswith("_"):
            continue
        clips.append(clip_of(path, root, word if word in WORDS else UNKNOWN))
        splits.append(which_split(path.name))
    kept = _thinned(clips, splits)
    clips, splits = [clips[row] for row in kept], [splits[row] for row in kept]
    for part, split in _silence(folder, root):
        clips.append(part)
        splits.append(split)
    if test_folder is not None:
        left = [row for row, split in enumerate(splits) if split != "test"]
        clips, splits = [clips[row] for row in left], [splits[row] for row in left]
        names = {**{word: word for word in WORDS}, SILENCE: SILENCE, UNKNOWN: UNKNOWN}
        tested = [clip_of(path, root, names.get(path.parent.name, UNKNOWN)) for path in sounds(test_folder, "*/*")]
        clips, splits = clips + tested, splits + ["test"] * len(tested)
    return divided(clips, splits, root, REMARK)


def _thinned(clips: list[Clip], splits: list[str]) -> list[int]:
    kept = []
    for split in set(splits):
        rows = [row for row, other in enumerate(splits) if other == split]
        known = [row for row in rows if clips[row].labels != (UNKNOWN,)]
        # By word and file alone: the folder that is given as root is in ids.
        unknown = sorted(set(rows) - set(known), key=lambda row: hashed("/".join(clips[row].path.parts[-2:])))
        kept += known + unknown[: max(1, round(len(known) / len(WORDS)))]
    return sorted(kept)


def _silence(folder: Path, root: Path) -> list[tuple[Clip, str]]:
    """The seconds of the noise with their splits, by time: neighbours sound alike, so that they are not dealt out."""
    parts = []
    for path in sounds(folder / NOISE, "*"):
        wave, rate = decode_sound(path)
        whole, total = clip_of(path, root, SILENCE), len(wave) // rate
        held = max(1, round(total * SHARE / 100))
        for start in range(total):
            left = total - start
            split = "test" if left <= held else "validation" if left <= 2 * held else "train"
            parts.append((Clip(f"{whole.id}@{start}", path, (SILENCE,), start=float(start), seconds=1.0), split))
    return parts

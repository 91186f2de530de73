"""Free Spoken Digit Dataset (Jackson et al.): spoken digits and their speakers."""

import re
from pathlib import Path

from crossdistill.probes.clips import ProbeData, clip_of, divided, layout_error, named_sounds

NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[A-Za-z]+)_(?P<number>\d+)")
TESTED, VALIDATED = 5, 10
"""Recordings 0 to 4 of each digit and speaker are the official test; 5 to 9 are the validation here."""


def digit(root: Path) -> ProbeData:
    """Ten digits, by six speakers who are in all splits, as the data set divides them.

    Raises:
        DataError: no recording is named so.
    """
    return _read(root, "digit")


def speaker(root: Path) -> ProbeData:
    """The speaker of each digit, in the same splits.

    Raises:
        DataError: no recording is named so.
    """
    return _read(root, "speaker")


def _read(root: Path, label: str) -> ProbeData:
    named = named_sounds(root, NAME, ("recordings", ""))
    if not named:
        raise layout_error(root, "recordings/DIGIT_SPEAKER_NUMBER.wav, such as 7_jackson_32.wav")
    clips = [clip_of(path, root, name[label]) for path, name in named]
    numbers = [int(name["number"]) for _, name in named]
    splits = ["test" if n < TESTED else "validation" if n < VALIDATED else "train" for n in numbers]
    return divided(
        clips,
        splits,
        root,
        "the official training has no validation: recordings 5 to 9 are taken from it",
        rule=f"of each digit and speaker, recordings 0 to {TESTED - 1} (the last number of a name) are the test, "
        f"{TESTED} to {VALIDATED - 1} the validation, and those from {VALIDATED} on train",
    )

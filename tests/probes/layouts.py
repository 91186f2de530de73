"""Tiny folders in the official layouts of probes, with tones whose pitch is the class."""

import json
from pathlib import Path

from own_files import write_sound

EMOTIONS, ACTORS = (1, 3), (1, 2, 3)


def ravdess(root: Path, emotions: tuple[int, ...] = EMOTIONS, statements: int = 2) -> Path:
    for actor in ACTORS:
        for emotion in emotions:
            for statement in range(1, statements + 1):
                name = f"03-01-{emotion:02}-01-{statement:02}-01-{actor:02}.wav"
                write_sound(root / f"Actor_{actor:02}" / name, 3 * (emotion % 3) + actor % 2, 0.15 + 0.01 * actor)
    return root


def digits(root: Path, each: int = 14) -> Path:
    for digit in range(3):
        for number in range(each):
            write_sound(root / "recordings" / f"{digit}_{('ann', 'bob')[number % 2]}_{number}.wav", 2 * digit, 0.12)
    return root


def notes(root: Path) -> Path:
    for place, instrument in enumerate(("oboe", "cor anglais", "flute", "tuba")):
        for pitch, note in enumerate(("A4", "Cs5", "D4", "E4", "Gs3")):
            for length in ("05", "1"):
                file = f"{instrument}_{note}_{length}_forte_normal.wav"
                write_sound(root / "audio" / instrument / file, pitch + place, 0.11)
    return root


def nsynth(root: Path) -> Path:
    for split in ("train", "valid", "test"):
        examples = {}
        for pitch in (60, 61):
            name = f"guitar_{split}-{pitch:03}-050"
            examples[name] = {"pitch": pitch, "instrument_family_str": ("guitar", "bass")[pitch - 60]}
            write_sound(root / f"nsynth-{split}" / "audio" / f"{name}.wav", pitch, 0.11)
        (root / f"nsynth-{split}" / "examples.json").write_text(json.dumps(examples))
    return root


def touched(root: Path, *names: str) -> Path:
    """Files without content, for readers that look at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root

"""Small folders and tables of pictures, recordings and arrays, for the tests of a user's own data."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_picture(path: Path, number: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Path:
    """A picture whose brightness depends on its number."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 128, (*size, 3), dtype=np.uint8) + np.uint8(number % 2 * 100)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def write_sound(path: Path, number: int, seconds: float = 0.3, rate: int = 8000, channels: int = 1) -> Path:
    """A tone whose pitch depends on its number."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (300 + 100 * (number % 7)) * time)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path


def class_folders(folder: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 6) -> Path:
    """A folder of pictures for each class."""
    for number, name in enumerate(classes):
        for one in range(each):
            write_picture(folder / name / f"{one:03}.png", 2 * one + number)
    return folder


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> Path:
    """Rows as a table with the columns of the first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def picture_rows(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Pictures of two classes, four takers, with the brightness as a number; writes the files."""
    return [
        {
            "file": str(write_picture(folder / "p" / f"{n:02}.png", n).relative_to(folder)),
            "label": ("cat", "dog")[n % 2],
            "taker": f"t{n // 2 % 4}",
            "age": n,
        }
        for n in range(count)
    ]


def damage(path: Path) -> None:
    """Cut a file."""
    path.write_bytes(path.read_bytes()[:60])

"""Measurement of benchmarks: A and B alternate within one run; figures are medians of the ratios of neighbours."""

import argparse
import atexit
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of results.json.

    `value` is a ratio (dimensionless), `limit` its largest accepted value (None: no limit), `spread` the distance
    between the quartiles of the ratios of single rounds (0 if the value does not depend on time).
    """

    name: str
    value: float
    limit: float | None
    spread: float
    device: str
    command: str

    def text(self) -> str:
        """The figure for a terminal."""
        verdict = "" if self.limit is None else f", at most {self.limit:g}: {'ok' if self.held else 'MISSED'}"
        return f"{self.name} ({self.device}): {self.value:.4g} ± {self.spread:.2g}{verdict}"

    @property
    def held(self) -> bool:
        """Whether the value is within the limit."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Ratios:
    """The ratio A / B of each round, and the seconds of each side."""

    values: tuple[float, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The distance between the quartiles of the ratios."""
        return quartile_distance(self.values)


def quartile_distance(values: Sequence[float]) -> float:
    """The distance from the first to the third quartile; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ratios(first: Sequence[float], second: Sequence[float]) -> Ratios:
    """The ratios of the seconds of two sides, by round."""
    return Ratios(tuple(a / b for a, b in zip(first, second, strict=True)), tuple(first), tuple(second))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Script:
    """A benchmark script: its options, its clock and its figures, which are written as soon as they are known."""

    def __init__(self, file: str) -> None:
        name = Path(file).name
        parser = argparse.ArgumentParser(description=f"benchmarks/{name}")
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
        parser.add_argument(
            "--rounds", type=int, help="number of rounds of each alternation, instead of the script's default"
        )
        parser.add_argument(
            "--clock",
            choices=("wall", "processor"),
            default="wall",
            help="processor: CPU seconds of this process, for a machine that is busy with other work",
        )
        options = parser.parse_args()
        self.device = torch.device(options.device)
        changed = {"--rounds": options.rounds, "--clock": options.clock if options.clock != "wall" else None}
        self.command = " ".join(
            [
                f"python benchmarks/{name}",
                *(f"{option} {value}" for option, value in changed.items() if value is not None),
            ]
        )
        self.clock: str = options.clock
        self._clock = time.perf_counter if options.clock == "wall" else time.process_time
        self._rounds: int | None = options.rounds
        self._out: Path | None = options.out
        self._figures: list[Figure] = []
        scratch = tempfile.TemporaryDirectory()
        atexit.register(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def rounds(self, default: int) -> int:
        """The number of rounds of the command line, or else `default`."""
        return self._rounds or default

    def timed(self, work: Work) -> float:
        """Seconds of one call."""
        gc.collect()
        _wait(self.device)
        began = self._clock()
        work()
        _wait(self.device)
        return self._clock() - began

    def alternate(self, works: Sequence[Work], rounds: int, *, warm: int = 1) -> list[list[float]]:
        """Seconds of each work in each round, in alternating order (ABBA), so that a drift of the machine cancels.

        `warm` rounds are run before and not timed.
        """
        for _ in range(warm):
            for work in works:
                work()
        seconds: list[list[float]] = [[] for _ in works]
        for number in range(self.rounds(rounds)):
            turn = list(enumerate(works))
            for index, work in turn if number % 2 == 0 else reversed(turn):
                seconds[index].append(self.timed(work))
        return seconds

    @property
    def on_cpu(self) -> bool:
        """Whether the device is a CPU, for which sizes are smaller."""
        return self.device.type == "cpu"

    def ratio(self, name: str, measured: Ratios, limit: float | None) -> None:
        """Report the median of ratios as a figure."""
        first, second = statistics.median(measured.first), statistics.median(measured.second)
        print(f"  {name}: {first:.3f} s / {second:.3f} s, {len(measured.values)} rounds", flush=True)
        self.value(name, measured.median, limit, measured.spread)

    def value(self, name: str, value: float, limit: float | None, spread: float = 0.0) -> None:
        """Report a figure."""
        figure = Figure(name, value, limit, spread, self.device.type, self.command)
        print(figure.text(), flush=True)
        self._figures.append(figure)
        self.save()

    def save(self) -> None:
        """Write the figures that are known so far, which may be none."""
        if self._out is not None:
            write(self._out, self._figures)


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as JSON."""
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1, ensure_ascii=False) + "\n")

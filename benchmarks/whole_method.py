"""Time of MST-Distill as a whole / of the reference, for one student, and for both students together.

All stages have the same number of epochs, so the sum of one epoch of each is measured; the time of filling the banks is
divided by the published number of epochs. Both students share `collaborate`, which does not depend on the choice of the
student; the reference trains it twice. The students are measured one after the other, to save memory.
"""

import gc

from both_ways import BothWays
from measure import Script, ratios

STAGES = ("collaborate", "specialise", "route")
Seconds = dict[tuple[str, str], list[float]]
"""Seconds of each round, by stage and side ("library", "reference")."""


def measured(script: Script, student: str) -> Seconds:
    """The time of every stage of one student on both sides; that of the library includes filling the banks."""
    train, validation, batch_size, rounds = (64, 16, 64, 2) if script.on_cpu else (4096, 1024, 512, 3)
    both = BothWays(script, student, train, validation, batch_size)
    works = {(stage, side): getattr(both, side)(stage) for stage in STAGES for side in ("library", "reference")}
    times = dict(zip(works, script.alternate(list(works.values()), rounds, warm=0), strict=True))
    for (stage, side), seconds in times.items():
        print(f"  {student} {stage}, {side}: {', '.join(f'{value:.2f}' for value in seconds)} s", flush=True)
    for stage in STAGES:
        times[stage, "library"] = [seconds + both.filling(stage) for seconds in times[stage, "library"]]
    return times


def added(parts: list[list[float]]) -> list[float]:
    """The sums of several lists of seconds, by round."""
    return [sum(each) for each in zip(*parts, strict=True)]


def main() -> None:
    """Measure both figures from the same rounds."""
    script = Script(__file__)
    image = measured(script, "image")
    library, reference = (added([image[stage, side] for stage in STAGES]) for side in ("library", "reference"))
    script.ratio("whole MST-Distill / the reference's way", ratios(library, reference), 0.35)
    gc.collect()
    audio = measured(script, "audio")
    library = added([library, *(audio[stage, "library"] for stage in STAGES if stage != "collaborate")])
    reference = added([reference, *(audio[stage, "reference"] for stage in STAGES)])
    script.ratio("both students, sharing collaborate / the reference's way", ratios(library, reference), 0.30)


if __name__ == "__main__":
    main()

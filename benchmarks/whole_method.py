"""MST-Distill as a whole, equal epochs a stage / the reference's way; and both students together.

All stages are as long as each other, so one epoch of each stands for the whole; filling the banks is paid once in the
published hundred epochs, and counted so. Both students share `collaborate`, which does not depend on who is the
student; the reference's way trains it twice. The students are measured one after the other, for the sake of memory.
"""

import gc

from both_ways import BothWays
from measure import Script, ratios

STAGES = ("collaborate", "specialise", "route")
Seconds = dict[tuple[str, str], list[float]]
"""Of each round, by stage and side ("own", "theirs")."""


def measured(script: Script, student: str) -> Seconds:
    """Every stage of one student in both ways, in turn; filling the banks is in "own"."""
    train, validation, batch_size, rounds = (64, 16, 64, 2) if script.on_cpu else (4096, 1024, 512, 3)
    both = BothWays(script, student, train, validation, batch_size)
    works = {(stage, side): getattr(both, side)(stage) for stage in STAGES for side in ("own", "theirs")}
    found = dict(zip(works, script.alternate(list(works.values()), rounds, warm=0), strict=True))
    for (stage, side), seconds in found.items():
        print(f"  {student} {stage}, {side}: {', '.join(f'{one:.2f}' for one in seconds)} s", flush=True)
    for stage in STAGES:
        found[stage, "own"] = [one + both.filling(stage) for one in found[stage, "own"]]
    return found


def added(parts: list[list[float]]) -> list[float]:
    """Round by round."""
    return [sum(each) for each in zip(*parts, strict=True)]


def main() -> None:
    """Two figures out of the same rounds."""
    script = Script(__file__)
    image = measured(script, "image")
    own, theirs = (added([image[stage, side] for stage in STAGES]) for side in ("own", "theirs"))
    script.ratio("whole MST-Distill / the reference's way", ratios(own, theirs), 0.35)
    gc.collect()
    audio = measured(script, "audio")
    own = added([own, *(audio[stage, "own"] for stage in STAGES if stage != "collaborate")])
    theirs = added([theirs, *(audio[stage, "theirs"] for stage in STAGES)])
    script.ratio("both students, sharing collaborate / the reference's way", ratios(own, theirs), 0.30)


if __name__ == "__main__":
    main()

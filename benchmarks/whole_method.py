"""MST-Distill as a whole, equal epochs a stage / the reference's way; and both students together.

All stages are as long as each other, so one epoch of each stands for the whole; filling the banks is paid once in the
published hundred epochs, and counted so. Both students share `collaborate`, which does not depend on who is the student;
the reference's way trains it twice. Pictures are kept channels last on the library's side, as its recipe for machines
without an accelerator does.
"""

from both_ways import BothWays
from measure import Script, ratios

STAGES = ("collaborate", "specialise", "route")


def main() -> None:
    """Two figures out of the same rounds."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (64, 16, 64, 3) if script.on_cpu else (4096, 1024, 512, 3)
    students = {name: BothWays(script, name, train, validation, batch_size) for name in ("image", "audio")}
    works, labels = [], []
    for name, both in students.items():
        for stage in STAGES:
            if (name, stage) != ("audio", "collaborate"):
                works.append(both.own(stage))
                labels.append((name, stage, "own"))
            works.append(both.theirs(stage))
            labels.append((name, stage, "theirs"))
    seconds = dict(zip(labels, script.alternate(works, rounds, warm=0), strict=True))
    for (name, stage, side), found in seconds.items():
        print(f"  {name} {stage} {side}: {', '.join(f'{one:.2f}' for one in found)} s", flush=True)
    filling = {name: sum(both.filling(stage) for stage in STAGES) for name, both in students.items()}
    rounds = range(len(seconds["image", "route", "own"]))

    def total(names: tuple[str, ...], side: str) -> list[float]:
        extra = sum(filling[name] for name in names) if side == "own" else 0.0
        return [
            extra + sum(seconds.get((n, s, side), [0.0] * len(rounds))[r] for n in names for s in STAGES)
            for r in rounds
        ]

    one, two = ("image",), ("image", "audio")
    script.ratio("whole MST-Distill / the reference's way", ratios(total(one, "own"), total(one, "theirs")), 0.35)
    script.ratio(
        "both students, sharing collaborate / the reference's way",
        ratios(total(two, "own"), total(two, "theirs")),
        0.30,
    )


if __name__ == "__main__":
    main()

"""An epoch of `specialise` at the widths of AV-MNIST / the reference's way, for the image student.

The reference's way runs the whole teacher for each mask, computes masks plainly and goes backward through frozen
layers. Here what fits the room for banks at all rows of AV-MNIST is banked (vectors), and the rest (maps) has its stem
run live, once for all masks of a teacher; the script says which. Both sides validate.
"""

from both_ways import BothWays
from measure import Script, ratios

ON_DISK = "stages.specialise.optimizer.moments=disk"


def main() -> None:
    """The epoch, and on a CPU the same with Adam's moments in files."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (256, 64, 64, 2) if script.on_cpu else (4096, 1024, 512, 5)
    both = BothWays(script, "image", train, validation, batch_size)
    works = [both.theirs("specialise"), both.own("specialise")]
    print(f"  {both.course('specialise').sources()}", flush=True)
    if script.on_cpu:
        works.append(BothWays(script, "image", train, validation, batch_size, ("own",), [ON_DISK]).own("specialise"))
    theirs, *own = script.alternate(works, rounds, warm=0)
    for seconds, what in zip(own, ("", ", moments on disk"), strict=False):
        name = f"specialise epoch, {train} rows, vectors banked and maps live{what} / the reference's way"
        script.ratio(name, ratios(seconds, theirs), 0.35)


if __name__ == "__main__":
    main()

"""Time of an epoch of `specialise` at the widths of AV-MNIST / of the reference, for the image student.

The reference runs the whole teacher for each mask, computes masks in the plain form and backpropagates through frozen
layers. The library stores the vectors, which fit into the limit of banks at all rows of AV-MNIST, and computes the stem
of the maps live, once for all masks of a teacher; the script prints which. Both sides validate.
"""

from both_ways import BothWays
from measure import Script, ratios

ON_DISK = "stages.specialise.optimizer.moments=disk"


def main() -> None:
    """Measure the epoch, and on a CPU also with Adam's moments in files."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (256, 64, 64, 2) if script.on_cpu else (4096, 1024, 512, 5)
    both = BothWays(script, "image", train, validation, batch_size)
    works = [both.reference("specialise"), both.library("specialise")]
    print(f"  {both.course('specialise').sources()}", flush=True)
    if script.on_cpu:
        works.append(
            BothWays(script, "image", train, validation, batch_size, ("library",), [ON_DISK]).library("specialise")
        )
    reference, *library = script.alternate(works, rounds, warm=0)
    for seconds, variant in zip(library, ("", ", moments on disk"), strict=False):
        name = f"specialise epoch, {train} rows, vectors banked and maps live{variant} / the reference's way"
        script.ratio(name, ratios(seconds, reference), 0.35)


if __name__ == "__main__":
    main()

"""An epoch of `specialise` at the widths of AV-MNIST / the reference's way, for the image student.

The reference's way runs the whole teacher for each mask, computes masks plainly and goes backward through frozen
layers. Here what fits the room for banks at all rows of AV-MNIST is banked (vectors), and the rest (maps) has its stem
run live, once for all masks of a teacher; the script says which. Both sides validate.
"""

from both_ways import BothWays
from measure import Script


def main() -> None:
    """One figure."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (256, 64, 64, 3) if script.on_cpu else (4096, 1024, 512, 5)
    found = BothWays(script, "image", train, validation, batch_size).ratio("specialise", rounds, warm=0)
    script.ratio(f"specialise epoch, {train} rows, vectors banked and maps live / the reference's way", found, 0.35)


if __name__ == "__main__":
    main()

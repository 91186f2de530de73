"""Time of an epoch of `route` on banked logits / of the reference, which runs all teachers with their masks live."""

from both_ways import BothWays
from measure import Script


def main() -> None:
    """Measure one figure, for the image student."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (128, 32, 64, 2) if script.on_cpu else (4096, 1024, 512, 5)
    measured = BothWays(script, "image", train, validation, batch_size).ratio("route", rounds, warm=0)
    script.ratio("route epoch, banked / the reference's way", measured, 0.05)


if __name__ == "__main__":
    main()

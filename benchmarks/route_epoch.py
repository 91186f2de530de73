"""An epoch of `route` on banked logits / the reference's way, which runs all teachers with their masks live."""

from both_ways import BothWays
from measure import Script


def main() -> None:
    """One figure, for the image student."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (128, 32, 64, 2) if script.on_cpu else (4096, 1024, 512, 5)
    found = BothWays(script, "image", train, validation, batch_size).ratio("route", rounds, warm=0)
    script.ratio("route epoch, banked / the reference's way", found, 0.05)


if __name__ == "__main__":
    main()

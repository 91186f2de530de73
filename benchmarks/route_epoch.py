"""An epoch of `route` on banked logits / the reference's way, which runs all teachers with their masks live."""

from both_ways import BothWays
from measure import Script, ratios


def main() -> None:
    """One figure for the image student. What filling the banks took is said; it is paid once, not in each epoch."""
    script = Script(__file__)
    train, validation, batch_size, rounds = (128, 32, 64, 5) if script.on_cpu else (4096, 1024, 512, 5)
    both = BothWays(script, "image", train, validation, batch_size)
    course = both.course("route")
    print(f"  {course.sources()}; filled in {course.bank_seconds:.1f} s", flush=True)
    found = ratios(*script.alternate([both.own("route"), both.theirs("route")], rounds))
    script.ratio("route epoch, banked / the reference's way", found, 0.05)


if __name__ == "__main__":
    main()

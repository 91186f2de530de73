"""Run every benchmark, write results.json beside this file, and the table in docs/results/cost.md.

    python benchmarks/run.py [SCRIPT...] [--clock processor] [--rounds N]

Options are handed on to each script. What is measured is written after each of them. One that fails does not stop the
others, and neither do figures over their limits; both are said.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Figure, write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
TABLES = HERE.parent / ".ci" / "tables.py"
SCRIPTS = (
    "masknet", "bank_read", "more_samples", "route_epoch", "student_alone", "peak_memory", "specialise_epoch",
    "whole_method", "step_switches", "part_size",
)  # fmt: skip


def merged(old: list[Figure], new: list[Figure]) -> list[Figure]:
    """New figures in the places of those of the same name and device; others stay."""
    found = {(one.name, one.device): one for one in new}
    kept = [found.pop((one.name, one.device), one) for one in old]
    return [*kept, *found.values()]


def main() -> None:
    """All of them, or those that are named, one after another."""
    parser = argparse.ArgumentParser(description="every benchmark")
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"only these: {', '.join(SCRIPTS)}")
    parser.add_argument("--clock", choices=("wall", "processor"))
    parser.add_argument("--rounds", type=int)
    given = vars(parser.parse_args())
    scripts = given.pop("scripts")
    if unknown := set(scripts) - set(SCRIPTS):
        parser.error(f"no script is called {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    options = [text for name, value in given.items() if value for text in (f"--{name}", str(value))]
    # A whole run starts from nothing; a part of one leaves the others' figures as they are.
    figures = [Figure(**line) for line in json.loads(RESULTS.read_text())] if scripts and RESULTS.exists() else []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in scripts or SCRIPTS:
            began, out = time.monotonic(), Path(folder) / f"{name}.json"
            print(f"bench: {name}", flush=True)
            done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--out", str(out), *options])
            if done.returncode:
                failed.append(name)
                continue
            figures = merged(figures, [Figure(**line) for line in json.loads(out.read_text())])
            print(f"bench: {name} took {time.monotonic() - began:.0f} s", flush=True)
            write(RESULTS, figures)
    subprocess.run([sys.executable, str(TABLES)], check=True)
    missed = [one.text() for one in figures if not one.held]
    print("\n".join(["bench: all limits are kept" if not missed else "bench: over their limits:", *missed]))
    if failed:
        raise SystemExit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Run every benchmark; write results.json beside this file, and the table in docs/results/cost.md.

    python benchmarks/run.py [SCRIPT...] [--clock processor] [--rounds N]

Each script gets the options. The results are written after each script. A script that fails and a figure over its limit
are reported at the end, and do not stop the others.
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
    "whole_method", "step_switches", "part_size", "row_sources", "kd_job", "augmented_job", "torchdistill_job",
    "second_start", "contrast_step", "richkd_epoch", "audio_rows", "speech_step",
)  # fmt: skip


def merged(old: list[Figure], new: list[Figure]) -> list[Figure]:
    """The old figures, with those of the same name and device replaced by the new ones, then the other new ones."""
    measured = {(figure.name, figure.device): figure for figure in new}
    kept = [measured.pop((figure.name, figure.device), figure) for figure in old]
    return [*kept, *measured.values()]


def main() -> None:
    """Run all scripts, or those that are named, one after another."""
    parser = argparse.ArgumentParser(description="run the benchmarks")
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"run only these: {', '.join(SCRIPTS)}")
    parser.add_argument("--clock", choices=("wall", "processor"))
    parser.add_argument("--rounds", type=int)
    arguments = vars(parser.parse_args())
    scripts = arguments.pop("scripts")
    if unknown := set(scripts) - set(SCRIPTS):
        parser.error(f"no script is called {', '.join(sorted(unknown))}; known: {', '.join(SCRIPTS)}")
    options = [text for name, value in arguments.items() if value for text in (f"--{name}", str(value))]
    # Only a run of all scripts discards the old figures.
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
    missed = [figure.text() for figure in figures if not figure.held]
    print(
        "\n".join(
            ["bench: all figures are within their limits" if not missed else "bench: over their limits:", *missed]
        )
    )
    if failed:
        raise SystemExit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""Whether the oldest and the newest versions of the dependencies were tested as they are declared now.

`python .ci/dependencies.py passed oldest` notes in `.ci/tested` that the tests passed with the versions installed here;
`python .ci/dependencies.py due` prints the ends whose declaration is another than the one noted there.
"""

import hashlib
import json
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTED = ROOT / ".ci" / "tested"
ENDS = ("oldest", "newest")
NAMED = ("torch", "numpy", "pydantic")


def declared() -> str:
    """A hash of everything that decides which versions are installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Of the extras, those that `make test-oldest` installs; tools of the tests themselves are always the newest.
    installed = re.search(r"^EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert installed is not None
    names = sorted(set(installed[1].split(",")) - {"dev"})
    extras = {name: project["optional-dependencies"][name] for name in names}
    parts = [project["requires-python"], project["dependencies"], extras]
    oldest = (ROOT / "constraints-oldest.txt").read_text()
    return hashlib.sha256(json.dumps([parts, oldest]).encode()).hexdigest()[:16]


def noted() -> dict[str, str]:
    """The line of each end in `.ci/tested`."""
    lines = TESTED.read_text().splitlines() if TESTED.is_file() else []
    return {line.split()[0]: line for line in lines if line.strip()}


def main(verb: str, end: str = "") -> None:
    """Note that an end passed, or print which are due."""
    lines = noted()
    if verb == "due":
        sys.stdout.write(" ".join(end for end in ENDS if end in lines and declared() not in lines[end]) + "\n")
    elif verb == "passed" and end in ENDS:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in NAMED)
        lines[end] = f"{end} {declared()} Python {platform.python_version()}, {versions}"
        TESTED.write_text("\n".join(lines[end] for end in ENDS if end in lines) + "\n")
    else:
        sys.exit(f"dependencies.py: wanted 'due', 'passed oldest' or 'passed newest', found {' '.join(sys.argv[1:])!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])

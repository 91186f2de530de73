"""The child process that reads files for `file_facts`: a request a line, and a line for each of its files."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from crossdistill.data.file_facts import examine


def main() -> None:
    """Answer requests from the standard input until it ends."""
    for line in sys.stdin:
        kind, paths = json.loads(line)
        for path in paths:
            # One line at a time: the parent knows which file ended this process.
            sys.stdout.write(json.dumps(asdict(examine(kind, Path(path)))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Tables of the pages that are made from code and results.

`python .ci/tables.py` writes them, `python .ci/tables.py --check` names the pages whose tables are stale.
A table stands between `<!-- table: NAME ARGUMENT... -->` and `<!-- end -->`. Sources are read, never imported, so that
any Python of version 3.11 or later makes the tables, with no package installed.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import tables_of_code as code
import tables_of_results as results

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table: ([^>]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TABLES: Mapping[str, Callable[..., str]] = {
    "modules": code.modules,
    "methods": code.methods,
    "recipes": code.recipes,
    "weightings": code.weightings,
    "models": code.models,
    "data": code.data,
    "commands": code.commands,
    "verbs": code.verbs,
    "extras": code.extras,
    "settings": code.settings,
    "example": code.example,
    "guides": code.guides,
    "accuracy": results.accuracy,
    "differences": results.differences,
    "cost": results.cost,
}


def pages() -> list[Path]:
    """Every page that git holds or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, timeout=60,
    )  # fmt: skip
    if listed.returncode:
        return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    return sorted(ROOT / name for name in set(listed.stdout.decode().split("\0")) if name and (ROOT / name).is_file())


def written(page: str) -> str:
    """A page's text with its tables made anew.

    Raises:
        SystemExit: a mark names no table, or lacks its end.
    """

    def made(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        if name not in TABLES:
            sys.exit(f"no table is called {name!r}; there are {', '.join(TABLES)}")
        return found[1] + TABLES[name](*arguments) + found[4]

    if len(re.findall("<!-- table: ", page)) != len(MARKED.findall(page)):
        sys.exit("a table has no <!-- end -->")
    return MARKED.sub(made, page)


def main(check: bool) -> None:
    """Write the tables, or name the pages whose tables are stale."""
    stale = []
    for path in pages():
        page = path.read_text(encoding="utf-8")
        if "<!-- table: " in page and written(page) != page:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(written(page), encoding="utf-8")
    if check and stale:
        sys.exit(f"tables are stale in {', '.join(stale)}; make them with: make tables")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])

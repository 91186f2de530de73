"""Tables of the pages that are made from the code: `python .ci/tables.py` writes them, `--check` says which are stale.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "crossdistill"
WHOLE = {"losses", "nets", "weighting", "methods", "models", "recipes", "testing"}
"""Folders of one kind of thing: their files are not listed one by one."""
PAGES = ("ARCHITECTURE.md",)
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _about(path: Path) -> str:
    """The first line of a module's docstring, as the cell of a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace("|", r"\|")


def _folder(folder: Path) -> Iterator[str]:
    name = folder.relative_to(PACKAGE).as_posix()
    yield f"| **`{name}/`** | {_about(folder / '__init__.py')} |"
    if name in WHOLE:
        return
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("__"):
            yield f"| `{name}/{path.name}` | {_about(path)} |"
    for inner in sorted(folder.glob("*/__init__.py")):
        yield from _folder(inner.parent)


def modules() -> str:
    """The files of the package's root and its folders, with what each is."""
    lines = ["| file | what it is |", "|---|---|"]
    for path in sorted(PACKAGE.glob("*.py")):
        if not path.name.startswith("__"):
            lines.append(f"| `{path.name}` | {_about(path)} |")
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        lines += _folder(path.parent)
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {"modules": modules}


def written(page: str) -> str:
    """A page's text with its tables made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], page)


def main(check: bool) -> None:
    """Write the tables, or name the pages whose tables are stale."""
    stale = []
    for name in PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        if written(page) != page:
            stale.append(name)
            if not check:
                (ROOT / name).write_text(written(page), encoding="utf-8")
    if check and stale:
        sys.exit(f"tables are stale in {', '.join(stale)}; make them with: make tables")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])

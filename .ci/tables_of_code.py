"""Tables of what the package has, from its sources: docstrings, the tables METHODS, MODELS and DATA, pyproject.toml."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "crossdistill"
WHOLE = {"losses", "nets", "weighting", "methods", "models", "recipes", "testing"}
"""Folders of one kind of thing: their files are not listed one by one."""
ACTS_ON = {
    "logits": "logits",
    "last": "penultimate layers",
    "maps": "all spatial layers",
    "last map": "last spatial layers",
    "student's layers": "the student's layers",
}


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, columns to the left."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines) + "\n"


@cache
def parsed(path: Path) -> ast.Module:
    """A source file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """The first line of a docstring, as the cell of a table."""
    return cell((ast.get_docstring(node) or "").partition("\n")[0].rstrip("."))


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return re.sub(r"\s+", " ", text).strip().replace("|", r"\|")


def assigned(tree: ast.Module | ast.ClassDef, name: str) -> ast.expr:
    """The value of a name that a module or class sets.

    Raises:
        KeyError: it sets no such name.
    """
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            if node.value is not None:
                return node.value
    raise KeyError(name)


def classes(path: Path) -> dict[str, ast.ClassDef]:
    """The classes of a file."""
    return {node.name: node for node in parsed(path).body if isinstance(node, ast.ClassDef)}


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a file."""
    return {node.name: node for node in parsed(path).body if isinstance(node, ast.FunctionDef)}


def constant(tree: ast.ClassDef, name: str) -> str | None:
    """The text that a class gives a field; None where it gives none."""
    try:
        value = assigned(tree, name)
    except KeyError:
        return None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def file_of(source: str) -> Path:
    """The file of a dotted module of the package."""
    return ROOT / "src" / (source.replace(".", "/") + ".py")


def _folder(folder: Path) -> Iterator[list[str]]:
    name = folder.relative_to(PACKAGE).as_posix()
    yield [f"**`{name}/`**", first_line(parsed(folder / "__init__.py"))]
    if name in WHOLE:
        return
    for path in sorted(folder.glob("*.py")):
        if not path.name.startswith("__"):
            yield [f"`{name}/{path.name}`", first_line(parsed(path))]
    for inner in sorted(folder.glob("*/__init__.py")):
        yield from _folder(inner.parent)


def modules() -> str:
    """The files of the package's root and its folders."""
    own = [path for path in sorted(PACKAGE.glob("*.py")) if not path.name.startswith("__")]
    rows = [[f"`{path.name}`", first_line(parsed(path))] for path in own]
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        rows += _folder(path.parent)
    return grid(["file", "what it is"], rows)


def method_files() -> Iterator[tuple[str, Path, ast.ClassDef]]:
    """Each method by name, with its file and the class of its settings."""
    for path in sorted((PACKAGE / "methods").glob("*.py")):
        for node in classes(path).values():
            name = constant(node, "name")
            if name is not None:
                yield name, path, node


def methods() -> str:
    """The table METHODS."""
    rows = []
    for name, path, node in method_files():
        link = f"[`{name}`](../{path.relative_to(ROOT).as_posix()})"
        rows.append(
            [link, first_line(parsed(path)), ACTS_ON.get(constant(node, "acts_on") or "", ""), first_line(node)]
        )
    return grid(["method", "what it is", "compares", "loss, or what a step computes"], rows)


def _plans(path: Path, table: str) -> Iterator[list[str]]:
    value = assigned(parsed(path), table)
    assert isinstance(value, ast.Dict)
    for key, plan in zip(value.keys, value.values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(plan, ast.Call)):
            continue
        words = {word.arg: word.value for word in plan.keywords}
        places = dict(zip(("stages", "kind", "kinds", "described"), plan.args, strict=False)) | words
        kind, described = places["kind"], places.get("described")
        if isinstance(described, ast.Constant):
            about = cell(str(described.value).partition("\n")[0].rstrip("."))
        else:
            assert isinstance(places["stages"], ast.Name)
            about = first_line(functions(path)[places["stages"].id])
        assert isinstance(kind, ast.Constant)
        yield [str(key.value), str(kind.value or ""), about]


def recipes() -> str:
    """The table PLANS: the second part of a recipe's short name."""
    folder = PACKAGE / "recipes"
    plain = [[name, "mm", first_line(parsed(path))] for name, path, node in method_files() if constant(node, "acts_on")]
    tables = (
        ("stages.py", "RIVALS"),
        ("release.py", "RELEASE"),
        ("richkd.py", "RICHKD"),
        ("translation.py", "TRANSLATION"),
    )
    rivals = sorted([*plain, *(row for file, table in tables for row in _plans(folder / file, table))])
    alone = _plans(folder / "stages.py", "PLANS")
    rows = [*alone, *rivals, *_plans(folder / "mst_distill.py", "MST_DISTILL")]
    return grid(["name", "teachers", "what it does"], [[f"`{name}`", kind, about] for name, kind, about in rows])


def weightings() -> str:
    """The weightings of a stage's terms."""
    rows = []
    for path in sorted((PACKAGE / "weighting").glob("*.py")):
        for node in classes(path).values():
            name = constant(node, "name")
            if name is not None:
                made = assigned(node, "makes")
                about = first_line(classes(path)[made.id]) if isinstance(made, ast.Name) else first_line(node)
                rows.append([f"`{name}`", about])
    return grid(["weighting", "what it does"], sorted(rows))


def models() -> str:
    """The table MODELS."""
    rows = _models("__init__.py", "MODELS")
    return grid(["model", "reads", "what it is"], rows)


def _models(file: str, table: str) -> list[list[str]]:
    """The rows of a table of models, and of those that it contains: `**PICTURES` is that of pictures.py."""
    value = assigned(parsed(PACKAGE / "models" / file), table)
    assert isinstance(value, ast.Dict)
    rows = []
    for key, model in zip(value.keys, value.values, strict=True):
        if key is None:
            assert isinstance(model, ast.Name)
            rows += _models(f"{model.id.lower()}.py", model.id)
            continue
        assert isinstance(key, ast.Constant)
        assert isinstance(model, ast.Call)
        _, reads, _, about = model.args[:4]
        rows.append([f"`{key.value}`", ", ".join(ast.literal_eval(reads)), cell(ast.literal_eval(about))])
    return rows


def data() -> str:
    """The table DATA."""
    rows = []
    for name, source in ast.literal_eval(assigned(parsed(PACKAGE / "data" / "__init__.py"), "DATA")).items():
        module, _, kind = source.partition(":")
        rows.append([f"`{name}`", first_line(classes(file_of(module))[kind])])
    return grid(["data", "what they are"], rows)


def _commands(path: Path, group: str, app: str) -> Iterator[list[str]]:
    files = [path, PACKAGE / "cli" / "options.py"]
    known = {
        node.targets[0].id: node.value
        for file in files
        for node in parsed(file).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in functions(path).values():
        for mark in node.decorator_list:
            if not (isinstance(mark, ast.Call) and ast.unparse(mark.func) == f"{app}.command"):
                continue
            words = ["crossdistill", *group.split(), ast.literal_eval(mark.args[0])]
            for argument in node.args.args:
                kind = argument.annotation
                if isinstance(kind, ast.Name):
                    kind = known.get(kind.id, kind)
                found = re.search(r"typer\.Argument\(.*?metavar='([^']+)'", ast.unparse(kind) if kind else "")
                words += [found[1]] if found else []
            yield [f"`{' '.join(words)}`", first_line(node)]


def commands() -> str:
    """The commands of the command line."""
    folder = PACKAGE / "cli"
    rows = [
        *_commands(folder / "main.py", "", "app"),
        *_commands(folder / "analyse.py", "", "analysis"),
        *_commands(folder / "fusion.py", "", "fusion"),
        *_commands(folder / "merge.py", "", "merging"),
        *_commands(folder / "audio.py", "audio", "audio"),
        *_commands(folder / "probe.py", "", "probing"),
        *_commands(folder / "bank.py", "bank", "bank"),
        *_commands(folder / "listing.py", "list", "listing"),
    ]
    return grid(["command", "what it does"], rows)


def verbs() -> str:
    """The verbs of the Makefile."""
    found = re.findall(r"^([a-z-]+):.*?## (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return grid(["verb", "what it does"], [[f"`make {verb}`", cell(about)] for verb, about in found])


def extras() -> str:
    """The extras of pyproject.toml: each package with the comment of its line."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    why = {(name, package): about for name, package, about in _reasons(section)}
    rows = []
    for name, packages in tomllib.loads(text)["project"]["optional-dependencies"].items():
        for number, package in enumerate(packages):
            rows.append(["" if number else f"`{name}`", f"`{package}`", cell(why.get((name, package), ""))])
    return grid(["extra", "package", "for"], rows)


def _reasons(section: str) -> Iterator[tuple[str, str, str]]:
    name = ""
    for line in section.splitlines():
        head = re.match(r"([a-z]+) = \[", line)
        name = head[1] if head else name
        found = re.search(r'"([^"]+)"[^#]*#\s*(.+)$', line)
        if found:
            yield name, found[1], found[2]


def settings(source: str, kind: str) -> str:
    """The fields of a class of settings: `settings stage Stage`."""
    tree = classes(file_of(f"crossdistill.{source}"))[kind]
    rows = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(node.annotation) or node.target.id.startswith("_"):
            continue
        text = after.value if isinstance(after, ast.Expr) else None
        about = text.value if isinstance(text, ast.Constant) else _described(node.value)
        annotation = re.sub(r"(?:InstanceOf|SerializeAsAny)\[(\w+)\]", r"\1", ast.unparse(node.annotation))
        rows.append([f"`{node.target.id}`", f"`{cell(annotation)}`", _default(node.value), cell(str(about))])
    return grid(["field", "type", "default", "meaning"], rows)


def _described(value: ast.expr | None) -> str:
    words = {word.arg: word.value for word in value.keywords} if isinstance(value, ast.Call) else {}
    return str(ast.literal_eval(words["description"])) if "description" in words else ""


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        words = {word.arg: word.value for word in value.keywords}
        if "default_factory" in words:
            return f"`{ast.unparse(words['default_factory'])}()`"
        found = value.args[0] if value.args else words.get("default")
        return "required" if found is None else _default(found)
    return f"`{cell(ast.unparse(value))}`"


def example(name: str) -> str:
    """An example, whole, without the docstring of its file."""
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    body = ast.parse(text).body
    return "```python\n" + "\n".join(text.splitlines()[body[1].lineno - 1 :]) + "\n```\n"


def guides(*names: str) -> str:
    """The pages of docs/ in this order: title and first sentence.

    Raises:
        SystemExit: a page is missing here, or in docs/.
    """
    found = {path.stem for path in (ROOT / "docs").glob("*.md")}
    if found != set(names):
        sys.exit(f"the list of guides and docs/*.md differ: {', '.join(sorted(found ^ set(names)))}")
    rows = []
    for name in names:
        title, first, *_ = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split("\n\n")
        link = f"[{title.removeprefix('# ').strip()}](docs/{name}.md)"
        rows.append([link, cell(re.split(r"[.:](?:\s|$)", first)[0])])
    return grid(["page", "what it tells"], rows)

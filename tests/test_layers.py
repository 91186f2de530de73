"""Who may import whom, read from the source; and what stays unimported until asked for, seen in child processes."""

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "crossdistill"

# From the bottom up: files of the package's root and its folders. One imports from its own layer and from those below.
# "" is the package's own __init__: it imports nothing until a name is asked for, so that every module may ask it for
# the version. Folders that are yet to come (backends, probes, analysis, export) are named where they will stand.
LAYERS = (
    {"", "errors"},
    {"runtime", "batch", "outputs", "weighting"},
    {"overrides", "report", "adapters", "losses", "autograd"},
    {"data", "nets", "network_split"},
    {"network"},
    {"teacher", "models", "backends"},
    {"method", "bank"},
    {"methods"},
    {"stage", "recipe"},
    {"run_folder", "recipes"},
    {"student", "planning", "probes", "export"},
    {"training", "distiller"},
    {"compare", "analysis", "testing"},
    {"cli", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

OPTIONAL = (
    "torchvision", "timm", "open_clip", "torchaudio", "transformers", "torchmetrics", "sklearn", "scipy", "soundfile",
    "soxr", "PIL", "tensorboard", "wandb", "mlflow", "espeakng_loader", "av", "pyarrow", "tokenizers",
)  # fmt: skip

# Words of data sets and of modalities: a method is about signals, and runs on any of these.
DATA_WORDS = set(
    re.findall(
        "[a-z]+",
        "image images picture pictures pixel pixels audio sound sounds speech spoken voice music song video text "
        "caption rgb infrared digit digits mnist cifar imagenet ravdess nyu nyudepth vggsound cremad esc fsdd",
    )
)


@dataclass(frozen=True)
class Import:
    """One import of ours: by which module, of which, in which line, and whether only for annotations."""

    by: str
    of: str
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.by} (line {self.line}) imports {self.of}"


@cache
def sources() -> dict[str, ast.Module]:
    """Every module by its dotted name without the package's: "", "errors", "methods.kd"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
    return found


def _is_package(module: str) -> bool:
    return (PACKAGE.joinpath(*module.split(".")) if module else PACKAGE).is_dir()


def _targets(node: ast.Import | ast.ImportFrom, by: str) -> Iterator[str]:
    """Modules of ours that one import statement reaches."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == "crossdistill":
                yield alias.name.partition(".")[2]
        return
    base = (node.module or "").split(".") if node.module else []
    if node.level:
        here = by.split(".") if by else []
        kept = here[: len(here) - node.level + (1 if _is_package(by) else 0)]
        base = ["crossdistill", *kept, *base]
    if base[:1] != ["crossdistill"]:
        return
    module = ".".join(base[1:])
    for alias in node.names:
        inner = f"{module}.{alias.name}".lstrip(".")
        yield inner if inner in sources() else module


def _typing_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes below `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


@cache
def imports() -> list[Import]:
    found = []
    for by, tree in sources().items():
        hidden = _typing_only(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += [Import(by, of, node.lineno, node in hidden) for of in _targets(node, by)]
    return found


def _noun(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_a_layer() -> None:
    homeless = sorted({_noun(module) for module in sources()} - set(LEVEL))
    assert not homeless, f"no layer in tests/test_layers.py (and ARCHITECTURE.md) for: {homeless}"


def test_the_imports_are_seen() -> None:
    seen = {(one.by, one.of) for one in imports()}
    assert ("weighting.dot", "weighting.weighting") in seen
    assert ("method", "losses.task") in seen


def test_the_package_itself_imports_nothing_of_ours() -> None:
    eager = [str(one) for one in imports() if not one.by and not one.typing_only]
    assert not eager, "\n".join(eager)


def test_no_module_imports_from_a_higher_layer() -> None:
    wrong = [str(one) for one in imports() if one.by and LEVEL.get(_noun(one.of), 99) > LEVEL.get(_noun(one.by), 99)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("of", ["modules", "folders"])
def test_there_are_no_cycles(of: str) -> None:
    graph: dict[str, set[str]] = {}
    for one in imports():
        by, imported = (one.by, one.of) if of == "modules" else (_noun(one.by), _noun(one.of))
        if not one.typing_only and by != imported:
            graph.setdefault(by, set()).add(imported)
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


def test_the_root_is_small() -> None:
    """Sixteen files and twenty folders, with those that are to come."""
    files = {path.name for path in PACKAGE.glob("*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {
        "backends",
        "probes",
        "analysis",
        "export",
    }
    assert len(files) <= 16, sorted(files)
    assert len(folders) <= 20, sorted(folders)


def test_methods_import_neither_data_nor_recipe_nor_runner() -> None:
    banned = {"data", "recipe", "recipes", "training", "stage", "models", "backends"}
    wrong = [str(one) for one in imports() if _noun(one.by) == "methods" and _noun(one.of) in banned]
    assert not wrong, "\n".join(wrong)


def _kinds_of_teachers() -> set[str]:
    """Classes that derive from `TeacherBase`, directly or not, and the old protocol of those with a key."""
    classes = [node for tree in sources().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    kinds = {"TeacherBase"}
    for _ in classes:
        kinds |= {one.name for one in classes if kinds & {ast.unparse(base) for base in one.bases}}
    return kinds - {"TeacherBase"} | {"Keyed"}


def _asks_for_a_kind(node: ast.AST, kinds: set[str]) -> bool:
    """isinstance, issubclass, a comparison with the class, a `match` on it, or another name for it."""
    asked: list[ast.AST] = []
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
        asked = list(node.args[1:])
    elif isinstance(node, ast.Compare):
        asked = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchClass):
        asked = [node.cls]
    elif isinstance(node, ast.alias) and node.asname:
        return node.name in kinds
    names = {
        part for one in asked for inner in ast.walk(one) for part in (getattr(inner, "id", getattr(inner, "attr", "")),)
    }
    return bool(kinds & names)


def test_nothing_but_teachers_and_banks_asks_which_kind_a_teacher_is() -> None:
    kinds = _kinds_of_teachers()
    assert {"Live", "Masked", "Filled", "Shuffled", "Banked", "FakeTeacher"} <= kinds
    for code in ("isinstance(x, Live | int)", "type(x) is teacher.Masked", "match x:\n case Banked(): pass"):
        assert any(_asks_for_a_kind(node, kinds) for node in ast.walk(ast.parse(code))), code
    wrong = [
        f"{module}, line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        for module, tree in sources().items()
        if module != "teacher" and _noun(module) != "bank"
        for node in ast.walk(tree)
        if _asks_for_a_kind(node, kinds)
    ]
    assert not wrong, "\n".join(wrong)


def _words_in_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Identifiers and texts of the code, with their lines; docstrings speak of papers and are left out."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners)]
    # A text that stands alone as a statement is a docstring, of a module, class, function or field.
    loose = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in loose:
            yield node.lineno, node.value
        for field in ("id", "arg", "attr", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield getattr(node, "lineno", 0), value


@pytest.mark.parametrize("module", sorted(name for name in sources() if _noun(name) == "methods"))
def test_a_method_names_no_data_set_and_no_modality(module: str) -> None:
    wrong = [
        f"line {line}: {text!r}"
        for line, text in _words_in_code(sources()[module])
        if DATA_WORDS & set(re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", text).lower()))
    ]
    assert not wrong, f"crossdistill.{module} names data: {wrong}"


def _child(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_everything_public_leaves_optional_packages_alone() -> None:
    code = (
        "import sys, crossdistill\n"
        "assert crossdistill.__all__\n"
        "for name in crossdistill.__all__: getattr(crossdistill, name)\n"
        "print(sorted(set(sys.argv[1:]) & set(sys.modules)))"
    )
    # PyTorch's compiler takes more than a second and 70 MB; only what compiles imports it.
    assert _child(code, *OPTIONAL, "torch._dynamo").strip() == "[]"


def test_the_command_line_starts_and_helps_without_torch() -> None:
    code = (
        "import sys\n"
        "import crossdistill.cli.main\n"
        "before = sorted({'torch', *sys.argv[1:]} & set(sys.modules))\n"
        "sys.argv = ['crossdistill', '--help']\n"
        "try: crossdistill.cli.main.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "after = sorted({'torch', 'numpy'} & set(sys.modules))\n"
        "print('modules:', before, after)"
    )
    text = _child(code, *OPTIONAL)
    assert "modules: [] []" in text
    assert "crossdistill" in text


def test_help_takes_half_a_second_of_processor_time() -> None:
    """Processor time, not wall time: other processes of a busy machine do not count."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(3):
        before = spent()
        subprocess.run([sys.executable, "-m", "crossdistill", "--help"], capture_output=True, check=True, timeout=60)
        times.append(spent() - before)
    assert min(times) <= 0.5, times

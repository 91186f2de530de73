"""The command line: small functions over the library. Commands import heavy packages only when they run."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossdistill import __version__
from crossdistill.cli.bank import bank
from crossdistill.cli.listing import listing
from crossdistill.cli.options import (
    AsJson,
    Budget,
    Control,
    DataName,
    DryRun,
    Jobs,
    Labelled,
    Methods,
    Out,
    OwnRecipe,
    Place,
    Preset,
    Resume,
    Seeds,
    Settings,
    Students,
    Sweep,
    Teachers,
    Tiny,
)
from crossdistill.errors import CrossdistillError, RecipeError, StoppedError
from crossdistill.runtime.escaping import visible

if TYPE_CHECKING:
    from crossdistill.recipe import Recipe

app = typer.Typer(
    name="crossdistill",
    help="Distil many teachers, of other modalities or domains, into one small student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(listing, name="list")
app.add_typer(bank, name="bank")


@app.callback(invoke_without_command=True)
def _about(
    version: Annotated[bool, typer.Option("--version", help="Say the version, and end.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"crossdistill {__version__}")
        raise typer.Exit


@app.command("run")
def run_command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A short name (crossdistill list recipes), package.module:function, path/to/file.py:function, "
            "or a run's recipe.yaml.",
        ),
    ],
    settings: Settings = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of weights, order and, where it is drawn, the split.")
    ] = None,
    out: Out = None,
    resume: Resume = False,
    tiny: Tiny = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, with projected time and memory.")
    ] = False,
    timed_steps: Annotated[
        int, typer.Option("--timed-steps", min=1, max=1000, help="With --dry-run: steps timed per stage.")
    ] = 3,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a model hub.")] = False,
) -> None:
    """Train a recipe, and evaluate its student once at the end."""
    _offline(offline)
    from crossdistill.recipes import make
    from crossdistill.recipes.stages import preset_notes
    from crossdistill.runtime.interruption import Interruption
    from crossdistill.runtime.progress import Quiet, Terminal
    from crossdistill.training.estimate import forecast
    from crossdistill.training.runner import run

    made = make(recipe, settings or [], seed)
    made = made.tiny() if tiny else made
    folder = out or _folder(recipe, made, resume=resume, tiny=tiny)
    with Terminal() as terminal, Interruption() as stop:
        display = terminal if _rank() == 0 else Quiet()
        try:
            if dry_run:
                _say(forecast(made, display, timed_steps).text())
                return
            for line in preset_notes(made):
                display.say(line)
            display.say(f"{made.name}: student {made.learner!r}, seed {made.seed}, into {folder}")
            report = run(made, folder, resume=resume, display=display, stop=stop)
        except KeyboardInterrupt as error:
            raise _ended(_at_once(folder, made, dry_run), stop.status) from error
        except StoppedError as error:
            raise _ended(str(error), stop.status) from error
    _say(report.markdown())
    _say(f"student: {folder / 'student'}   results: {folder / 'results.json'}", err=True)


@app.command("eval")
def eval_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    split: Annotated[str, typer.Option("--split", help="test, validation or train.")] = "test",
    metric: Annotated[
        str, typer.Option("--metric", help="accuracy, balanced-accuracy, macro-f1, kappa or matthews.")
    ] = "accuracy",
    recipe: OwnRecipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's saved student on its recipe's data."""
    from crossdistill.recipes.of_run import of_run
    from crossdistill.run_folder.folder import unchanged
    from crossdistill.training.evaluation import evaluate_folder

    unchanged(run)
    found = evaluate_folder(run, of_run(run, recipe, settings or [], "eval"), split, metric)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        rows = f"{found['rows']:,} of {found['of']:,}" if found["rows"] != found["of"] else f"{found['rows']:,}"
        said = f"{rows} row{'' if found['of'] == 1 else 's'} of the {split} split"
        typer.echo(f"{visible(str(run))}: {found['metric']} {found['value']:.4f} on {said}")


@app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a student's.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Pictures, sounds or arrays, one example each.")
    ],
    recipe: OwnRecipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Predict the class of each file with a run's student."""
    from crossdistill.recipes.of_run import module_of_run
    from crossdistill.student import load_student

    student = load_student(run, module_of_run(recipe, settings or []))
    found = student.predict(files)
    if as_json:
        rows = [
            {"file": str(f), "label": p.label, "probability": p.probability} for f, p in zip(files, found, strict=True)
        ]
        typer.echo(json.dumps(rows))
        return
    for file, prediction in zip(files, found, strict=True):
        typer.echo(f"{visible(str(file))}: {visible(prediction.label)} ({prediction.probability:.3f})")


@app.command("compare")
def compare_command(
    data: DataName,
    methods: Methods = None,
    students: Students = None,
    teachers: Teachers = None,
    seeds: Seeds = None,
    labelled: Labelled = None,
    control: Control = None,
    sweep: Sweep = None,
    budget: Budget = None,
    preset: Preset = None,
    settings: Settings = None,
    jobs: Jobs = None,
    on: Place = "local",
    out: Out = None,
    resume: Resume = False,
    tiny: Tiny = False,
    dry_run: DryRun = False,
) -> None:
    """Train several methods under equal conditions, and print one table with paired statistics."""
    from crossdistill.compare.grid import Grid
    from crossdistill.compare.run import compare

    grid = Grid.parse(
        data,
        preset=preset,
        methods=methods,
        students=students,
        teachers=teachers,
        seeds=seeds,
        labelled=labelled,
        control=control,
        settings=tuple(settings or ()),
        sweep=tuple(sweep or ()),
        budget=budget,
        tiny=tiny,
    )
    if dry_run:
        from crossdistill.compare.dry_run import dry_run_report

        typer.echo(dry_run_report(grid, jobs, on))
        return
    folder = out or Path("runs") / f"compare-{data}"
    try:
        comparison = compare(grid, folder, jobs=jobs, resume=resume, on=on)
    except KeyboardInterrupt as error:
        raise _ended(AT_ONCE, 130) from error
    typer.echo(comparison.text())
    if comparison.findings.failed:
        raise typer.Exit(1)


@app.command("doctor")
def doctor_command(as_json: AsJson = False) -> None:
    """Check every optional package, and report broken ones with the reason."""
    from crossdistill.cli import doctor

    diagnosis = doctor.examine()
    if as_json:
        typer.echo(json.dumps(doctor.as_data(diagnosis), indent=2))
    else:
        from rich.console import Console

        Console().print(doctor.render(diagnosis))
    if diagnosis.faults:
        raise typer.Exit(1)


def _folder(name: str, recipe: "Recipe", *, resume: bool, tiny: bool) -> Path:
    """The folder of a run: named after the recipe, or the existing one when a run resumes by its own recipe."""
    given = Path(name)
    given = given.parent if given.name == "recipe.yaml" else given
    if resume and os.path.isfile(given / "recipe.yaml"):
        return given
    return Path("runs") / f"{recipe.name.replace('/', '-')}-{recipe.learner}-seed{recipe.seed}{'-tiny' * tiny}"


def _rank() -> int:
    """The rank of this process under torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def _say(text: str, *, err: bool = False) -> None:
    """Print a text from rank 0 alone."""
    if _rank() == 0:
        typer.echo(visible(text, lines=True), err=err)


def _offline(wanted: bool) -> None:
    if wanted:
        # The packages read these variables when they are imported, which happens later.
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")


def main() -> None:
    """Run a command; errors that the user can correct print one message and exit with status 1 (faulty recipe: 2)."""
    try:
        app(prog_name="crossdistill")
    except CrossdistillError as error:
        _complain(error)
        sys.exit(2 if isinstance(error, RecipeError) else 1)
    except OSError as error:
        # A name that is too long may come from any option; Python fails when it looks for the file.
        if error.errno != errno.ENAMETOOLONG:
            raise
        _complain(f"{str(error.filename)[:100]}...: no file or folder can have a name of that length")
        sys.exit(1)


AT_ONCE = "stopped at once; the same command with --resume goes on"


def _at_once(folder: Path, recipe: "Recipe", dry_run: bool) -> str:
    """The message after a run stopped without saving: what exists, and the command to resume."""
    from crossdistill.run_folder.folder import RECIPE, go_on

    if dry_run or not (folder / RECIPE).is_file():
        return "stopped at once; nothing was saved yet"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return f"stopped at once, without saving; go on with: {go_on(folder, recipe, ranks)}"


def _ended(why: str, status: int) -> typer.Exit:
    if _rank() == 0:
        _complain(why)
    return typer.Exit(status)


def _complain(error: object) -> None:
    """Print an error on standard error, from every rank, since reasons may differ."""
    said = visible(str(error), lines=True)
    typer.echo(f"crossdistill{f', rank {_rank()}' if _rank() else ''}: {said}", err=True)

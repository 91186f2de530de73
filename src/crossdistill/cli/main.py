"""The command line: small functions over the library. Commands import heavy packages only when they run."""

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossdistill import __version__
from crossdistill.cli.analyse import analysis
from crossdistill.cli.audio import audio
from crossdistill.cli.bank import bank
from crossdistill.cli.fusion import fusion
from crossdistill.cli.listing import listing
from crossdistill.cli.merge import merging
from crossdistill.cli.options import (
    AsJson,
    Budget,
    Control,
    DataName,
    DryRun,
    Epochs,
    Jobs,
    Labelled,
    MethodName,
    Methods,
    Minutes,
    Out,
    OwnData,
    OwnRecipe,
    Place,
    Preset,
    Resume,
    Seed,
    Seeds,
    Settings,
    StudentName,
    Students,
    Sweep,
    TeacherNames,
    Teachers,
    TimedSteps,
    Tiny,
)
from crossdistill.cli.probe import probing
from crossdistill.errors import CrossdistillError, RecipeError, StoppedError
from crossdistill.runtime.escaping import visible

if TYPE_CHECKING:
    from crossdistill.data.prediction import Prediction
    from crossdistill.recipe import Recipe

app = typer.Typer(
    name="crossdistill",
    help="Distil several teacher networks, of other modalities or domains, into one small student network.",
    epilog="Start with `crossdistill run av-digits/kd --tiny`, a first run of some seconds. `crossdistill COMMAND "
    "--help` describes a command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group, name in ((listing, "list"), (bank, "bank"), (audio, "audio")):
    app.add_typer(group, name=name)


@app.callback(invoke_without_command=True)
def _about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
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
            help="DATA/METHOD as in `crossdistill list recipes`, package.module:function, path/to/file.py:function, "
            "or a run's folder or its recipe.yaml.",
        ),
    ],
    settings: Settings = None,
    seed: Seed = None,
    out: Out = None,
    resume: Resume = False,
    tiny: Tiny = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Train nothing: print the stages, with projected time and memory."),
    ] = False,
    timed_steps: TimedSteps = 3,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a teacher that is no better than chance, instead of warning of it.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use downloaded models only; send no request to a model hub.")
    ] = False,
) -> None:
    """Train the stages of a recipe, then evaluate its student.

    Writes the student, its predictions, the metrics of all steps and the recipe into the folder of --out. Ctrl-C saves
    a checkpoint and stops; --resume continues. An error ends with status 1, a faulty recipe with status 2.
    """
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
            report = run(made, folder, resume=resume, display=display, stop=stop, strict=strict)
        except KeyboardInterrupt as error:
            raise _ended(_at_once(folder, made, dry_run), stop.status) from error
        except StoppedError as error:
            raise _ended(str(error), stop.status) from error
    _say(report.markdown())
    _say(f"student: {folder / 'student'}   results: {folder / 'results.json'}", err=True)


@app.command("eval")
def eval_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="test, validation or train.")] = "test",
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Of classes: accuracy, balanced-accuracy, macro-f1, kappa, matthews, ece, nll, brier; of labels: map, "
            "micro-f1, macro-f1, subset-accuracy; of numbers: r2, mae, rmse; of soft labels: accuracy to matthews, "
            "cross-entropy. "
            "By default the run's main one.",
        ),
    ] = None,
    recipe: OwnRecipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate the student of a finished run on a split of its data."""
    from crossdistill.recipes.of_run import of_run
    from crossdistill.run_folder.folder import unchanged
    from crossdistill.training.evaluation import evaluate_folder

    unchanged(run)
    result = evaluate_folder(run, of_run(run, recipe, settings or [], "eval"), split, metric)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        rows = f"{result['rows']:,} of {result['of']:,}" if result["rows"] != result["of"] else f"{result['rows']:,}"
        of = f"{rows} row{'' if result['of'] == 1 else 's'} of the {split} split"
        typer.echo(f"{visible(str(run))}: {result['metric']} {result['value']:.4f} on {of}")


@app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of a student.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Pictures, sounds or arrays (.npy), each with one example.")
    ],
    recipe: OwnRecipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Predict the class, the labels or the numbers of each file with a trained student."""
    from crossdistill.recipes.of_run import module_of_run
    from crossdistill.student import load_student

    student = load_student(run, module_of_run(recipe, settings or []))
    predictions = list(zip(files, student.predict(files), strict=True))
    if as_json:
        typer.echo(json.dumps([_prediction(file, prediction) for file, prediction in predictions]))
        return
    for file, prediction in predictions:
        sure = "" if student.task == "regression" else f" ({prediction.probability:.3f})"
        typer.echo(f"{visible(str(file))}: {visible(prediction.label)}{sure}")


def _prediction(file: Path, prediction: "Prediction") -> dict[str, object]:
    """One prediction as plain values; a regression has no probability."""
    sure = {} if math.isnan(prediction.probability) else {"probability": prediction.probability}
    values = {"values": dict(prediction.values)} if prediction.values else {}
    return {"file": str(file), "label": prediction.label, **sure, **values}


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
    """Train several methods under equal conditions and compare them.

    Prints a table of all methods with paired statistics, and writes it into the folder of --out. `--dry-run` projects
    the time first. Ctrl-C stops; --resume continues. Ends with status 1 if a run failed.
    """
    from crossdistill.compare.grid import Grid
    from crossdistill.compare.run import compare
    from crossdistill.recipes.own_files import short_name

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
    folder = out or Path("runs") / f"compare-{short_name(data)}"
    try:
        comparison = compare(grid, folder, jobs=jobs, resume=resume, on=on)
    except KeyboardInterrupt as error:
        raise _ended(AT_ONCE, 130) from error
    typer.echo(comparison.text())
    if comparison.findings.failed:
        raise typer.Exit(1)


@app.command("distill")
def distill_command(
    data: OwnData,
    student: StudentName = None,
    teachers: TeacherNames = None,
    method: MethodName = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    settings: Settings = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of weights and order.")] = 0,
    out: Out = None,
    resume: Resume = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact a model hub.")] = False,
) -> None:
    """Train a small student from your own data in one call; what you leave out is picked from the data.

    The first lines say what was picked and why, with the projected time. Try it without data of your own:

    crossdistill distill av-digits --minutes 1
    """
    _offline(offline)
    from crossdistill.recipes.own_files import short_name
    from crossdistill.report import Report
    from crossdistill.runtime.progress import Quiet, Terminal
    from crossdistill.training.one_call import distill

    folder = out or Path("runs") / f"distill-{short_name(data)}"
    with Terminal() as terminal:
        try:
            distill(
                data,
                student,
                teachers=teachers or (),
                method=method,
                out=folder,
                minutes=minutes,
                epochs=epochs,
                settings=settings or (),
                seed=seed,
                resume=resume,
                display=terminal if _rank() == 0 else Quiet(),
            )
        except KeyboardInterrupt as error:
            raise _ended(AT_ONCE, 130) from error
        except StoppedError as error:
            raise _ended(str(error), 130) from error
    _say(Report.load(folder).markdown())
    _say(f"student: {folder / 'student'}   results: {folder / 'results.json'}", err=True)


@app.command("doctor")
def doctor_command(as_json: AsJson = False) -> None:
    """Check the packages, devices and folders of this installation.

    Imports every package that crossdistill can use, and reports missing and broken ones with the reason and a remedy.
    Ends with status 1 if it finds a fault.
    """
    from crossdistill.cli import doctor

    diagnosis = doctor.examine()
    if as_json:
        typer.echo(json.dumps(doctor.as_data(diagnosis), indent=2))
    else:
        from rich.console import Console

        Console().print(doctor.render(diagnosis))
    if diagnosis.faults:
        raise typer.Exit(1)


app.registered_commands += [one for part in (analysis, fusion, merging, probing) for one in part.registered_commands]


def _folder(name: str, recipe: "Recipe", *, resume: bool, tiny: bool) -> Path:
    """The folder of a run: named after the recipe, or the existing one when a run resumes by its own recipe."""
    path = Path(name)
    folder = path.parent if path.name == "recipe.yaml" else path
    if resume and os.path.isfile(folder / "recipe.yaml"):
        return folder
    return Path("runs") / f"{recipe.name.replace('/', '-')}-{recipe.learner}-seed{recipe.seed}{'-tiny' * tiny}"


def _rank() -> int:
    """The rank of this process under torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def _say(text: str, *, err: bool = False) -> None:
    """Print a text from rank 0 alone."""
    if _rank() == 0:
        typer.echo(visible(text, lines=True), err=err)


def _offline(enabled: bool) -> None:
    if enabled:
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


AT_ONCE = "stopped at once; go on with the same command and --resume"


def _at_once(folder: Path, recipe: "Recipe", dry_run: bool) -> str:
    """The message after a run stopped without saving: what exists, and the command to resume."""
    from crossdistill.run_folder.folder import RECIPE, resume_command

    if dry_run or not (folder / RECIPE).is_file():
        return "stopped at once; nothing was saved"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return f"stopped at once, without a new checkpoint; go on with: {resume_command(folder, recipe, ranks)}"


def _ended(why: str, status: int) -> typer.Exit:
    if _rank() == 0:
        _complain(why)
    return typer.Exit(status)


def _complain(error: object) -> None:
    """Print an error on standard error, from every rank, since reasons may differ."""
    text = visible(str(error), lines=True)
    typer.echo(f"crossdistill{f', rank {_rank()}' if _rank() else ''}: {text}", err=True)

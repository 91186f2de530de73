"""`crossdistill analyse`: calibration, confidence and robustness of the networks of a finished run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli.options import AsJson, OwnRecipe, Settings, folder_option
from crossdistill.errors import SettingError
from crossdistill.runtime.escaping import visible

analysis = typer.Typer(rich_markup_mode=None)

Split = Annotated[str, typer.Option("--split", metavar="NAME", help="test, validation or train.")]
ReferenceTeacher = Annotated[
    str | None,
    typer.Option("--teacher", metavar="NAME", help="The teacher that changes are against; by default the main one."),
]
Certain = Annotated[
    float,
    typer.Option(
        "--certain", min=0, max=1, metavar="P", help="Largest probability from which on a prediction is confident."
    ),
]
RowLimit = Annotated[
    int | None, typer.Option("--rows", min=1, metavar="N", help="Measure so many rows of the split; by default all.")
]
Corruptions = Annotated[
    str | None,
    typer.Option(
        "--corruptions",
        metavar="all|A,B",
        help="Measure on corrupted pictures too: all, or names such as gaussian-noise,jpeg-compression.",
    ),
]
Severities = Annotated[
    str, typer.Option("--severities", metavar="N,N", help="Severities of the corruptions, from 1 to 5.")
]
Baseline = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="NAME|RUN",
        help="What the mean corruption error is relative to: a teacher, or a run with the same analysis.",
    ),
]
Results = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=folder_option, help="Folder of the results; by default RUN/analysis."),
]


@analysis.command("analyse")
def analyse_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    split: Split = "test",
    teacher: ReferenceTeacher = None,
    certain: Certain = 0.5,
    rows: RowLimit = None,
    corruptions: Corruptions = None,
    severities: Severities = "1,2,3,4,5",
    baseline: Baseline = None,
    out: Results = None,
    recipe: OwnRecipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure calibration and confidence of a finished run's student, of its teachers and of the fused one.

    Prints accuracy, expected calibration error, NLL, Brier score and the numbers of confident and unsure predictions,
    and writes them, with the bins of the reliability diagram, into RUN/analysis. The split is looked at after
    training, and selects nothing.
    """
    from crossdistill.recipes.of_run import of_run
    from crossdistill.run_folder.folder import unchanged
    from crossdistill.runtime.progress import Terminal
    from crossdistill.training.analysis import analyse
    from crossdistill.training.corruption_results import chosen_corruptions, chosen_severities

    if baseline is not None and corruptions is None:
        raise SettingError(
            f"--baseline {baseline} compares errors on corrupted pictures, and --corruptions is not given; "
            "add --corruptions all, or take --teacher for the changes against a teacher"
        )
    kinds = () if corruptions is None else chosen_corruptions(corruptions)
    degrees = chosen_severities(severities)
    unchanged(run)
    made = of_run(run, recipe, settings or [], "analyse")
    with Terminal() as display:
        found = analyse(
            run,
            made,
            split=split,
            reference=teacher,
            certain=certain,
            rows=rows,
            corruptions=kinds,
            severities=degrees,
            baseline=baseline,
            display=display,
        )
    folder = out or run / "analysis"
    found.save(folder)
    typer.echo(json.dumps(found.as_data(), allow_nan=False) if as_json else visible(found.markdown(), lines=True))
    typer.echo(visible(f"written into {folder}"), err=True)

"""Options of the command line: those of several commands, and long lists of one command."""

from pathlib import Path
from typing import Annotated

import typer


def folder_option(text: str) -> Path:
    """The path of a folder; an empty one, which would mean the working folder, is an error."""
    if not text.strip():
        raise typer.BadParameter("it is empty; give a folder, as in --out runs/first (the working folder is '.')")
    return Path(text)


Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A parameter of the recipe, or any of its fields."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=folder_option, help="The run's folder; by default under runs/."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="A few steps on a few rows, to see that all of it runs.")]
OwnRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE.py:FUNCTION",
        help="The function that made the run's recipe, where its networks or data are your own; it is run. A run's "
        "folder names it, and is never followed by itself.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")]

DataName = Annotated[str, typer.Argument(metavar="DATA", help="As in `crossdistill list data`.")]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="Names with commas (crossdistill list methods); all: every method once, without presets and ablations "
        "(mst-distill-...), which are run when they are named.",
    ),
]
Students = Annotated[str | None, typer.Option("--students", help="Modalities with commas; by default every one.")]
Teachers = Annotated[
    str | None,
    typer.Option(
        "--teachers",
        help="mm (multimodal), cm (cross-modal), mm+cm with commas; by default each method's own. A method whose "
        "own are both is run once with both where both are named.",
    ),
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="So many runs of each cell.")]
Labelled = Annotated[str | None, typer.Option("--labelled", help="Fractions of the student's labels, with commas.")]
Control = Annotated[
    str | None,
    typer.Option("--control", help="shuffled: teachers look at other rows, at the scarcest labels of the grid."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="FIELD=A,B,C",
        help="Tune a field of the methods, of their stage or of its optimizer: the same number of trials for every "
        "method, on a seed of their own, chosen on the validation split. Can be given several times.",
    ),
]
Budget = Annotated[
    float | None, typer.Option("--budget", metavar="MINUTES", help="Pick seeds and epochs that fit, and say so.")
]
Preset = Annotated[str | None, typer.Option("--preset", help="demo: the README's table.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Workers; by default one a core, or what the cluster has.")
]
Place = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="PLACE",
        help="local, ray[:address=...,num_gpus=...] or slurm[:slurm_partition=...,timeout_min=...]; machines share "
        "the folder of --out.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the cells, what they share, projected time, and what cannot apply.")
]

"""Options of the command line: those of several commands, and long lists of one command."""

from pathlib import Path
from typing import Annotated

import typer


def folder_option(text: str) -> Path:
    """The path of a folder.

    Raises:
        BadParameter: the text is empty, which would mean the working folder.
    """
    if not text.strip():
        raise typer.BadParameter(
            "wanted a folder, as in --out runs/first, found an empty text (the working folder is '.')"
        )
    return Path(text)


Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set a parameter of the recipe's function, or a field of the recipe: student=audio, stages.kd.epochs=3. "
        "Can be given several times.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=folder_option, help="Folder of the results; by default one in runs/."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of the initial weights, of the order of rows and, if it is random, of the split. By default the "
        "recipe's.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run that the folder holds; a finished one is left as it is.")
]
Tiny = Annotated[
    bool, typer.Option("--tiny", help="Train a few steps on a few rows, as a quick check that everything works.")
]
TimedSteps = Annotated[
    int,
    typer.Option(
        "--timed-steps",
        min=1,
        max=1000,
        metavar="N",
        help="With --dry-run: number of steps of each stage that are timed.",
    ),
]
OwnRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE.py:FUNCTION",
        help="The function that made the run's recipe. Needed if its networks or data are your own. The command "
        "executes it; the name of the function in the run's folder is never executed.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]

DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Name of a data set (`crossdistill list data`), or FILE.py:FUNCTION (package.module:FUNCTION), whose "
        "function returns an ExperimentSetup: your own data and networks.",
    ),
]
OwnData = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A table (csv, tsv, jsonl, parquet), a folder (with a folder for each class, or without labels), "
        "FILE.py:FUNCTION that returns a Dataset or an ExperimentSetup, or a name of `crossdistill list data`.",
    ),
]
StudentName = Annotated[
    str | None,
    typer.Option(
        "--student",
        metavar="NAME",
        help="A modality of the data, or a network: a name of `crossdistill list models`, timm:NAME, "
        "transformers:ID_OR_FOLDER, package.module:Class. By default a small one for the data.",
    ),
]
TeacherNames = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        metavar="NAME",
        help="A teacher, named as a student is. Can be given several times. By default the networks of all other "
        "modalities and one that reads every modality; for data of one modality, a larger network.",
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="A name of `crossdistill list methods`; by default by the data."),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0.01, metavar="N", help="Time for the training; epochs are picked to fit."),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", min=1, metavar="N", help="Epochs of every stage; by default by the number of rows."),
]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        metavar="A,B,C",
        help="Methods to compare, by the second part of a recipe's name and separated by commas. By default "
        "supervised,kd,mst-distill; all: every method without its presets and ablations (mst-distill-...).",
    ),
]
Students = Annotated[
    str | None,
    typer.Option(
        "--students", metavar="A,B,C", help="Modalities of the students, separated by commas. By default all of them."
    ),
]
Teachers = Annotated[
    str | None,
    typer.Option(
        "--teachers",
        metavar="A,B,C",
        help="Kinds of teachers, separated by commas: mm (multimodal), cm (cross-modal) or mm+cm (both at once). By "
        "default those of each method's recipe. A method whose recipe has both runs with both if mm and cm are named.",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", metavar="N", help="Number of runs of each cell, with seeds from 0; by default 3."),
]
Labelled = Annotated[
    str | None,
    typer.Option(
        "--labelled",
        metavar="A,B,C",
        help="Fractions of the training rows whose labels the student may use, separated by commas. By default 1.",
    ),
]
Control = Annotated[
    str | None,
    typer.Option(
        "--control",
        metavar="NAME",
        help="shuffled: run each method again with teachers that read other rows, at the smallest fraction of labels.",
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="FIELD=A,B,C",
        help="Tune a field of the methods, of their stage or of its optimizer. Every method gets the same number of "
        "trials, with a seed that no other run has, and the best value on the validation split. Can be given several "
        "times.",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget", metavar="MINUTES", help="Choose and report the numbers of seeds and epochs that fit into this time."
    ),
]
Preset = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="demo: the options of the README's table.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        metavar="N",
        help="Number of worker processes. By default one for each core, or as many as the cluster has room for.",
    ),
]
Place = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="PLACE",
        help="Where the workers run: local, ray[:address=...,num_gpus=...] or "
        "slurm[:slurm_partition=...,timeout_min=...]. All machines need access to the folder of --out.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Train nothing: print the cells, the stages that they share, the projected time and faults."
    ),
]

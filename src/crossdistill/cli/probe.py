"""`crossdistill probe`: frozen networks on labelled recordings, with small heads on their features."""

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from crossdistill.cli.options import AsJson, folder_option
from crossdistill.errors import SettingError
from crossdistill.runtime.escaping import visible

probing = typer.Typer(rich_markup_mode=None)

TaskNames = Annotated[
    list[str],
    typer.Option(
        "--task", metavar="NAME", help="Name of a probe, such as spoken-digit or esc50. Can be given several times."
    ),
]
DataFolders = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="DIR|FILE",
        help="Folder of the data in their official layout (of manifest: the table). Once for all tasks, or once for "
        "each task, in their order.",
    ),
]
Shots = Annotated[
    list[int] | None,
    typer.Option(
        "--shots", min=1, metavar="N...", help="Also train on N clips of each class: --shots 5 20. Can be repeated."
    ),
]
ProbeSeeds = Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Number of heads and of subsets.")]
LayerChoice = Annotated[str, typer.Option("--layers", metavar="last|sum", help="The last layer, or a learned sum.")]
HeadChoice = Annotated[
    str,
    typer.Option(
        "--head", metavar="linear|mlp", help="SUPERB's projection and linear layer, or MARBLE's 512 hidden units."
    ),
]
ReportFolder = Annotated[
    Path | None,
    typer.Option("--to", metavar="DIR", parser=folder_option, help="Folder of the report; by default runs/probe."),
]


@probing.command("probe")
def probe_command(
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_FOLDER...",
            help="Runs, students, folders of transformers, or transformers:ID_OR_FOLDER, teachers too.",
        ),
    ],
    tasks: TaskNames,
    data: DataFolders,
    shots: Shots = None,
    seeds: ProbeSeeds = 5,
    layers: LayerChoice = "last",
    head: HeadChoice = "linear",
    to: ReportFolder = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score frozen networks of sound on labelled recordings, by small heads on their features.

    Prints a table of tasks and networks with the spread over seeds, and writes it, with the subsets of few shots, into
    the folder of --to. Features are computed once and kept in the cache. `crossdistill list probes` has the tasks.
    """
    from crossdistill.probes.heads import HeadKind
    from crossdistill.probes.probing import Layers, Settings, probe
    from crossdistill.probes.tasks import find_task
    from crossdistill.runtime.progress import Terminal

    for name in tasks:
        find_task(name)
    # An option takes one word: the further numbers of `--shots 5 20` come as arguments.
    numbers = [text for text in networks if text.isdecimal() and not Path(text).exists()] if shots else []
    networks = [text for text in networks if text not in numbers]
    amounts = tuple(dict.fromkeys([*(shots or ()), *map(int, numbers)]))
    if len(data) not in (1, len(tasks)):
        raise SettingError(f"--data: wanted 1 folder, or one for each of the {len(tasks)} tasks; found {len(data)}")
    pairs = list(zip(tasks, data if len(data) > 1 else data * len(tasks), strict=True))
    settings = Settings(cast(Layers, layers), cast(HeadKind, head), seeds, amounts, device)
    folder = to or Path("runs") / "probe"
    with Terminal() as display:
        report = probe(networks, pairs, settings, out=folder, display=display)
    typer.echo(json.dumps(report.as_data(), allow_nan=False) if as_json else report.terminal(), nl=as_json)
    typer.echo(visible(f"written into {folder}"), err=True)

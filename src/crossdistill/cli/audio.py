"""`crossdistill audio`: manifests of recordings, for the data `speech-music`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli.options import AsJson
from crossdistill.runtime.escaping import visible

audio = typer.Typer(help="Make manifests of recordings.", no_args_is_help=True, rich_markup_mode=None)


@audio.callback()
def _about() -> None:
    """A group, so that its one command keeps its name."""


@audio.command("manifest")
def manifest_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of recordings, with those below.")],
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="Domain of these recordings, as speech.")],
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="A .csv, .jsonl or .parquet; rows are added to one there.")
    ],
    group: Annotated[
        bool, typer.Option("--group", help="Write each file's folder as its group, which is never in two splits.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Scan folders of recordings and write their paths, domain, durations and rates into a manifest.

    crossdistill audio manifest LibriSpeech --domain speech --to audio.csv
    """
    from crossdistill.data.audio.manifest import make_manifest
    from crossdistill.runtime.progress import Terminal

    with Terminal() as terminal:
        made = make_manifest(
            folders,
            domain,
            to,
            group=group,
            said=lambda done, total: terminal.data("reading headers", done, total),
        )
    if as_json:
        typer.echo(json.dumps(asdict(made)))
        return
    if made.skipped:
        typer.echo(visible(made.skipped), err=True)
    twice = f" ({made.already:,} were in it already)" if made.already else ""
    typer.echo(f"{visible(str(to))}: {made.added:,} clips added{twice}")
    for name, count in made.kept.items():
        typer.echo(f"  {count:,} of those stay {visible(name)}: to change a domain, edit the manifest", err=True)
    for name, hours in made.hours.items():
        typer.echo(f"  {visible(name)}: {made.clips[name]:,} clips, {hours:.3f} h")

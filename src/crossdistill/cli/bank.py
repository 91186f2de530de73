"""`crossdistill bank`: fill, check, list and clear banks, the stored outputs of frozen networks."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli.options import AsJson, folder_option
from crossdistill.errors import BankDamaged, SettingError
from crossdistill.runtime.escaping import visible

bank = typer.Typer(
    help="What frozen networks gave, stored: fill, check, list, clear.", no_args_is_help=True, rich_markup_mode=None
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run's folder, a folder of banks, or one bank.")]
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@bank.command("fill")
def fill_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="As for `crossdistill run`, or a run's folder.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="As for `crossdistill run`.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="As for `crossdistill run`.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", parser=folder_option, help="The run's folder.")
    ] = None,
    banks: Annotated[
        Path | None,
        typer.Option(
            "--banks", metavar="DIR", parser=folder_option, help="A folder for banks, instead of the run's own."
        ),
    ] = None,
    share: Annotated[
        Path | None,
        typer.Option("--share", metavar="DIR", parser=folder_option, help="A folder of stages that runs share."),
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Of the recipe's tiny form.")] = False,
) -> None:
    """Fill the banks that a recipe's stages read, as far as its networks are final; parallel calls share the work."""
    from crossdistill.planning.fill_banks import prefill
    from crossdistill.recipes import make
    from crossdistill.runtime.progress import Terminal

    made = make(recipe, settings or [], seed)
    made = made.tiny() if tiny else made
    folder = out or (Path(recipe) if Path(recipe).is_dir() else None)
    if folder is None and banks is None and share is None:
        raise SettingError("say where the banks go: --out DIR (the run's folder), --banks DIR or --share DIR")
    with Terminal() as display:
        waiting = prefill(made, folder or (banks or share or Path()), share=share, banks=banks, display=display)
    typer.echo(f"to be trained first: {', '.join(waiting)}" if waiting else "every bank of this recipe is filled")


@bank.command("check")
def check_command(
    folder: Folder,
    quick: Annotated[bool, typer.Option("--quick", help="Leave the values unread.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify banks: files, types, sample ids, and every value against its checksum. Ends with 1 if one is damaged."""
    from crossdistill.bank.folder import entry, find_banks

    entries = [entry(path, values=not quick) for path in find_banks(folder)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in entries]))
    for one in [] if as_json else entries:
        state = one.fault or (
            "sound" if one.filled == one.blocks else f"{one.filled} of {one.blocks} blocks are filled"
        )
        typer.echo(visible(f"{one.path}: {state}"))
    damaged = [one for one in entries if one.fault]
    if damaged:
        raise BankDamaged(f"{len(damaged)} of {len(entries)} banks are damaged")
    if not as_json:
        typer.echo(f"{_banks(entries)}, none damaged")


@bank.command("list")
def list_command(folder: Folder, as_json: AsJson = False) -> None:
    """List banks: network and signal, size, filled blocks, time since the last use."""
    from crossdistill.bank.bank import size_text
    from crossdistill.bank.folder import entry, find_banks

    entries = [entry(path) for path in find_banks(folder)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in entries]))
        return
    for one in sorted(entries, key=lambda one: -one.bytes):
        filled = "" if one.filled == one.blocks else f", {one.filled} of {one.blocks} blocks filled"
        what = (
            f"damaged: {one.fault}" if one.fault else f"{one.source} {one.want}, {one.rows:,} rows, {one.dtype}{filled}"
        )
        typer.echo(visible(f"{size_text(one.bytes):>10}  used {_ago(one.idle_s):>7} ago  {what}  {one.path}"))
    typer.echo(f"{_banks(entries)}, {size_text(sum(one.bytes for one in entries))}")


@bank.command("clear")
def clear_command(
    folder: Folder,
    older: Annotated[
        str | None, typer.Option("--older", metavar="AGE", help="Those unused for longer: 12h, 30d, 2w.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="SIZE", help="The longest unused, until the rest fit: 500M, 20G.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every bank in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which, remove none.")] = False,
) -> None:
    """Remove banks: one by its own folder, or those in a folder by age, by size or all; damaged ones always."""
    from crossdistill.bank.bank import size_text
    from crossdistill.bank.folder import clear_leftovers, entry, find_banks, remove, to_prune

    found = find_banks(folder)
    if not (older or keep or everything) and found != [folder]:
        raise SettingError(f"{folder} holds {_banks(found)}: say which with --older AGE, --keep SIZE or --all")
    entries = [entry(path) for path in found]
    chosen = entries
    if older or keep:
        seconds = None if older is None else _number(older, SECONDS, "--older", "12h, 30d or 2w")
        size = None if keep is None else int(_number(keep, BYTES, "--keep", "500M or 20G"))
        chosen = to_prune(entries, older_s=seconds, keep=size)
    freed = 0
    for one in chosen:
        refusal = None if dry_run else remove(Path(one.path))
        freed += 0 if refusal else one.bytes
        said = refusal or f"{'would remove' if dry_run else 'removed'} {one.source} {one.want}  {one.path}"
        typer.echo(visible(said))
    if not dry_run:
        clear_leftovers(folder)
    typer.echo(f"{size_text(freed)} {'would be' if dry_run else 'are'} free")


def _banks(found: Sequence[object]) -> str:
    return f"{len(found)} bank{'' if len(found) == 1 else 's'}"


def _number(text: str, units: dict[str, int], option: str, examples: str) -> float:
    match = re.fullmatch(r"([0-9.]+)\s*([a-z]?)b?", text.strip().lower())
    if match is None or match[2] not in units or match[1].count(".") > 1:
        raise SettingError(f"{option}: wanted something like {examples}, found {text!r}")
    return float(match[1]) * units[match[2]]


def _ago(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= SECONDS[unit]:
            return f"{seconds / SECONDS[unit]:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"

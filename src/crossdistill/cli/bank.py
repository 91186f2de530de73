"""`crossdistill bank`: fill, check, list, clear, export and import banks, the stored outputs of frozen teachers."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossdistill.cli.options import AsJson, OwnRecipe, Settings, folder_option
from crossdistill.errors import BankDamaged, SettingError
from crossdistill.runtime.escaping import visible

if TYPE_CHECKING:
    from crossdistill.backends.bank_file import BankInfo

bank = typer.Typer(
    help="Fill, check, list, clear, export or import banks: stored outputs of frozen teachers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run, of several banks, or of one bank.")]
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@bank.command("fill")
def fill_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe as for `crossdistill run`, or a run's folder.")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A setting, as for `crossdistill run`.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="The seed, as for `crossdistill run`.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=folder_option,
            help="The run's folder; the banks are stored in it. One of --out, --banks and --share is needed.",
        ),
    ] = None,
    banks: Annotated[
        Path | None,
        typer.Option(
            "--banks",
            metavar="DIR",
            parser=folder_option,
            help="Folder of the banks, instead of one in the run's folder.",
        ),
    ] = None,
    share: Annotated[
        Path | None,
        typer.Option(
            "--share",
            metavar="DIR",
            parser=folder_option,
            help="Folder of the stages and banks that several runs share.",
        ),
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Fill the banks of a run with --tiny.")] = False,
) -> None:
    """Compute and store the teachers' outputs before a run.

    Fills the banks whose networks are trained already, and names the stages that have to be trained before the others.
    Several calls at the same time share the work.
    """
    from crossdistill.planning.fill_banks import prefill
    from crossdistill.recipes import make
    from crossdistill.runtime.progress import Terminal

    made = make(recipe, settings or [], seed)
    made = made.tiny() if tiny else made
    folder = out or (Path(recipe) if Path(recipe).is_dir() else None)
    if folder is None and banks is None and share is None:
        raise SettingError(
            "bank fill: wanted a folder for the banks, found none; give --out DIR (the run's folder), --banks DIR or "
            "--share DIR"
        )
    with Terminal() as display:
        waiting = prefill(made, folder or (banks or share or Path()), share=share, banks=banks, display=display)
    typer.echo(f"to be trained first: {', '.join(waiting)}" if waiting else "all banks of this recipe are filled")


@bank.command("check")
def check_command(
    folder: Folder,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the values; check files, types and sample ids only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify banks against their checksums.

    Checks files, types, sample ids and all values. Ends with status 1 if a bank is damaged.
    """
    from crossdistill.bank.folder import entry, find_banks

    entries = [entry(path, values=not quick) for path in find_banks(folder)]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in entries]))
    for row in [] if as_json else entries:
        filled = "sound" if row.filled == row.blocks else f"{row.filled} of {row.blocks} blocks are filled"
        typer.echo(visible(f"{row.path}: {row.fault or filled}"))
    damaged = [row for row in entries if row.fault]
    if damaged:
        raise BankDamaged(f"{len(damaged)} of {len(entries)} banks are damaged")
    if not as_json:
        typer.echo(f"{_banks(entries)}, none damaged")


@bank.command("list")
def list_command(folder: Folder, as_json: AsJson = False) -> None:
    """List banks, with their network, output, size, filled blocks and time since the last use."""
    from crossdistill.bank.bank import size_text
    from crossdistill.bank.folder import entry, find_banks

    entries = [entry(path) for path in find_banks(folder)]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in entries]))
        return
    for row in sorted(entries, key=lambda row: -row.bytes):
        filled = "" if row.filled == row.blocks else f", {row.filled} of {row.blocks} blocks filled"
        content = f"{row.source} {row.want}, {row.rows:,} rows, {row.dtype}{filled}"
        state = f"damaged: {row.fault}" if row.fault else content
        typer.echo(visible(f"{size_text(row.bytes):>10}  used {_ago(row.idle_s):>7} ago  {state}  {row.path}"))
    typer.echo(f"{_banks(entries)}, {size_text(sum(row.bytes for row in entries))}")


@bank.command("clear")
def clear_command(
    folder: Folder,
    older: Annotated[
        str | None,
        typer.Option("--older", metavar="AGE", help="Remove banks unused for longer than this: 12h, 30d, 2w."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep",
            metavar="SIZE",
            help="Remove the longest unused banks until the rest take at most this: 500M, 20G.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every bank in the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing: print the banks that would be removed.")
    ] = False,
) -> None:
    """Remove banks by age, by size, or all of them.

    Removes the bank of FOLDER, or those of the banks in FOLDER that the options select. With --older and --keep,
    damaged banks are removed too. A bank that is being filled is kept.
    """
    from crossdistill.bank.bank import size_text
    from crossdistill.bank.folder import clear_leftovers, entry, find_banks, remove, to_prune

    paths = find_banks(folder)
    if not (older or keep or everything) and paths != [folder]:
        raise SettingError(f"{folder} holds {_banks(paths)}; select them with --older AGE, --keep SIZE or --all")
    entries = [entry(path) for path in paths]
    chosen = entries
    if older or keep:
        seconds = None if older is None else _number(older, SECONDS, "--older", "12h, 30d or 2w")
        size = None if keep is None else int(_number(keep, BYTES, "--keep", "500M or 20G"))
        chosen = to_prune(entries, older_s=seconds, keep=size)
    freed = 0
    for row in chosen:
        refusal = None if dry_run else remove(Path(row.path))
        freed += 0 if refusal else row.bytes
        line = refusal or f"{'would remove' if dry_run else 'removed'} {row.source} {row.want}  {row.path}"
        typer.echo(visible(line))
    if not dry_run:
        clear_leftovers(folder)
    typer.echo(f"{size_text(freed)} {'would be' if dry_run else 'are'} free")


@bank.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run whose teacher is banked.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="The file: .safetensors, or .parquet (pyarrow).")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="NAME", help="The teacher; by default all with logits.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="Type of the logits: float32, float16 or int8.")
    ] = "float32",
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, metavar="K", help="Keep the K largest logits of each row; by default all."),
    ] = None,
    embedding: Annotated[bool, typer.Option("--embedding", help="Export the teacher's embeddings too.")] = False,
    banks: Annotated[
        Path | None,
        typer.Option(
            "--banks",
            metavar="DIR",
            parser=folder_option,
            help="Folder of the banks, if it is not in the run's folder.",
        ),
    ] = None,
    recipe: OwnRecipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write teachers' logits to one file that can be handed on, and print what its form loses.

    The file has sample ids and views, class names, teacher and licence, and the fingerprint of the data. Elsewhere,
    `--set teachers.NAME=bank:FILE` trains from it without the teacher's network.
    """
    from typing import get_args

    from crossdistill.backends.compressed import LogitType
    from crossdistill.bank.export import Form, export_bank
    from crossdistill.data.dataset import Dataset
    from crossdistill.errors import nearest
    from crossdistill.network import Network
    from crossdistill.recipes.of_run import of_run

    if to is None:
        raise SettingError("bank export: wanted a file, found none; give --to FILE, as in --to clip.safetensors")
    types: tuple[LogitType, ...] = get_args(LogitType)
    stored_as = next((known for known in types if known == dtype), None)
    if stored_as is None:
        raise SettingError(f"--dtype: no type is called {dtype!r}; {nearest(dtype, types)}")
    made = of_run(run, recipe, settings or [], "bank export")
    infos = export_bank(
        banks or run / "banks",
        to,
        made.data if isinstance(made.data, Dataset) else made.data.load(),
        teacher=teacher,
        models={name: one.model for name, one in made.teachers.items() if not isinstance(one, Network)},
        stages=[stage.name for stage in made.stages],
        form=Form(stored_as, top, embedding),
    )
    _show(to, infos, as_json)


@bank.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `crossdistill bank export`.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name for `bank:NAME`; by default that of the file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a file of teachers' logits and keep it, so that `bank:NAME` is a teacher in any folder.

    Class names and fingerprint are compared with the data by the run that uses it.
    """
    from crossdistill.backends.from_bank import keep

    path, infos = keep(file, name)
    _show(path, infos, as_json)
    if not as_json:
        words = " ".join(f"--set teachers.{info.teacher.name}=bank:{path.stem}" for info in infos)
        typer.echo(visible(f"train from it: crossdistill run RECIPE {words}"))


def _show(path: Path, infos: "Sequence[BankInfo]", as_json: bool) -> None:
    from crossdistill.bank.bank import size_text

    size, data = path.stat().st_size, infos[0].data
    if as_json:
        each = [info.model_dump(mode="json") for info in infos]
        typer.echo(json.dumps({"path": str(path), "bytes": size, "teachers": each}))
        return
    lines = [f"{path}: {size_text(size)}, data {data.name}, fingerprint {data.fingerprint[:12]}"]
    for info in infos:
        licence = info.teacher.licence
        form = info.logits.dtype if info.logits.top is None else f"{info.logits.top} largest in {info.logits.dtype}"
        lines += [
            f"teacher {info.teacher.name}{f' ({info.teacher.model})' if info.teacher.model else ''}, licence "
            f"{licence.licence if licence else 'not stated'}: {info.rows:,} rows"
            f"{f' in {info.views} views' if info.views else ''}, logits of {len(info.classes)} classes, {form}"
            f"{', with embeddings' if info.embedding else ''}",
            *(
                f"  KL to the full logits, temperature {one.temperature:g}: mean {one.kl_mean:.3g}, largest "
                f"{one.kl_max:.3g}"
                for one in info.loss
            ),
            f"  the same largest class in {100 * info.agreement:.2f} % of the rows",
        ]
    for line in lines:
        typer.echo(visible(line))


def _banks(banks: Sequence[object]) -> str:
    return f"{len(banks)} bank{'' if len(banks) == 1 else 's'}"


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

"""`crossdistill merge`: several students of one shape as one, without training."""

from pathlib import Path
from typing import Annotated

import typer

from crossdistill.runtime.escaping import visible

merging = typer.Typer(rich_markup_mode=None)


@merging.command("merge")
def merge_command(
    students: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Folders of runs or students, or of Hugging Face models.")
    ],
    weights: Annotated[
        list[str],
        typer.Option("--weights", metavar="W W", help="A weight for each, as .9 .1; without --base they sum to 1."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the merged student.")],
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="linear, task or ties.")] = "linear",
    base: Annotated[
        Path | None, typer.Option("--base", metavar="DIR", help="Common ancestor, for task vectors and TIES.")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="PREFIX=W,W", help="Weights of the tensors whose names begin so."),
    ] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", metavar="P", help="Share of each task vector that TIES keeps (0.2).")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", metavar="X", help="Factor of the merged task vector (1).")
    ] = None,
    permute: Annotated[
        Path | None,
        typer.Option("--permute", metavar="DATA", help="Align units first, on recordings of this manifest or folder."),
    ] = None,
) -> None:
    """Merge the weights of students of one shape into one student, which loads as the first one does.

    crossdistill merge runs/speech runs/music --weights .9 .1 --out merged
    """
    from crossdistill.errors import SettingError, nearest
    from crossdistill.models.merging import METHODS
    from crossdistill.run_folder.merge import merge_folders

    chosen = next((name for name in METHODS if name == method), None)
    if chosen is None:
        raise SettingError(f"merge: there is no method {method!r}; {nearest(method, METHODS)}")
    named = dict(_layer(text) for text in layers or [])
    # An option takes one word: the further weights of `--weights .9 .1` come as arguments.
    numbers = [text for text in students if _is_number(text) and not Path(text).exists()]
    folders = [Path(text) for text in students if text not in numbers]
    values = _numbers(" ".join([*weights, *numbers]))
    merge_folders(
        folders,
        values,
        out,
        base=base,
        method=chosen,
        layers=named,
        keep=keep,
        scale=scale,
        permute=permute,
    )
    typer.echo(
        f"{visible(str(out))}: {len(folders)} students merged ({method}, weights {', '.join(f'{w:g}' for w in values)})"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _layer(text: str) -> tuple[str, list[float]]:
    name, _, numbers = text.partition("=")
    return name, _numbers(numbers)


def _numbers(text: str) -> list[float]:
    from crossdistill.errors import SettingError

    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise SettingError(f"merge: weights {text!r}; wanted numbers, as .9,.1") from error

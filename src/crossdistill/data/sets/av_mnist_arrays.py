"""`av-mnist` from the ready arrays that the reference reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.batch import InputSpec
from crossdistill.data.array_file import read_array
from crossdistill.data.content import OnProgress
from crossdistill.data.dataset import Dataset, Licence
from crossdistill.data.prepare import MIN_MAX, example_shapes, limits, normalise
from crossdistill.data.split import choose_rows, paper_split
from crossdistill.data.stored import map_array, store
from crossdistill.errors import DataError

PARTS = ("train", "test")
SHAPES = {"image": (1, 28, 28), "audio": (1, 112, 112)}
BLOCK_ROWS = 1000

# These texts are part of the fingerprint of the data: other words would make stored stages and banks unusable.
ABOUT = (
    "AV-MNIST from ready arrays ({folder}): weakened MNIST digits and 112x112 spectrograms of spoken digits. Pairs are "
    "matched by digit, so pairing itself carries the class: a teacher that hears tells the student what it sees. The "
    "splits are random over pairs, as in the paper: the same clip may train and test."
)


def array_paths(root: Path) -> list[Path] | None:
    """The files of images, audio and labels, each training part before test part, in `root/avmnist` or `root`.

    None if there is no such file.

    Raises:
        DataError: only some of the six files exist; names the missing ones.
    """
    for folder in (root / "avmnist", root):
        paths = [folder / kind / f"{part}_data.npy" for kind in SHAPES for part in PARTS]
        paths += [folder / f"{part}_labels.npy" for part in PARTS]
        missing = [path for path in paths if not path.is_file()]
        if not missing:
            return paths
        if len(missing) < len(paths):
            raise DataError(f"av-mnist: {folder} lacks {', '.join(str(path.relative_to(folder)) for path in missing)}")
    return None


def build_from_arrays(
    paths: Sequence[Path], folder: Path, *, rows: int | None, seed: int, over_all: bool, progress: OnProgress
) -> None:
    """Write the data set to a folder of the cache.

    As in the reference, arrays without a channel dimension are normalised for each example, arrays with one by the
    limits of the training rows (`over_all`: of all rows).

    Raises:
        DataError: an array is unreadable, truncated, contains NaN or Inf, or has another shape than the reference's.
    """
    image, audio, label = ([read_array(path, mapped=True) for path in paths[i : i + 2]] for i in (0, 2, 4))
    for kind, parts, names in (("image", image, paths[:2]), ("audio", audio, paths[2:4])):
        for part, targets, path, target_path in zip(parts, label, names, paths[4:], strict=True):
            _check(kind, part, targets, path, target_path)
        if parts[0].ndim != parts[1].ndim:
            raise DataError(
                f"{names[0]} has shape {parts[0].shape}, {names[1]} has shape {parts[1].shape}; wanted the same number "
                "of dimensions, which determines the normalisation"
            )
    # The labels of one part may have the shape (N,), those of the other (N, 1).
    digits = torch.from_numpy(np.concatenate([part.reshape(-1).astype(np.int64) for part in label]))
    chosen = choose_rows(len(digits), rows, seed)
    splits = paper_split(len(chosen), seed)
    measured = chosen if over_all else chosen[np.sort(splits["train"].numpy())]
    inputs, specs = {}, {}
    for kind, parts, names in (("image", image, paths[:2]), ("audio", audio, paths[2:4])):
        read = _reader(kind, parts, names)
        how = MIN_MAX if parts[0].ndim < 4 else _limits(read, measured)
        spec = InputSpec(kind="array", shape=SHAPES[kind], options={"normalisation": how})
        path = folder / f"input.{kind}.npy"
        _write(path, read, chosen, spec, progress)
        inputs[kind], specs[kind] = map_array(path), spec
    store(
        folder,
        Dataset(
            name="av-mnist",
            inputs=inputs,
            targets=digits[chosen],
            classes=tuple("0123456789"),
            splits=splits,
            input_specs=specs,
            fingerprint="",
            about=ABOUT.format(folder=paths[0].parent.parent.name),
            licences=(Licence("AV-MNIST arrays", "unknown", "the user's own files", None),),
        ),
    )


def _check(kind: str, part: NDArray[Any], targets: NDArray[Any], path: Path, target_path: Path) -> None:
    wanted = SHAPES[kind]
    allowed = example_shapes(wanted)
    if part.shape[1:] not in allowed:
        raise DataError(f"{path}: examples have shape {part.shape[1:]}; wanted one of {', '.join(map(str, allowed))}")
    if targets.size != len(part):
        raise DataError(f"{path} has {len(part):,} examples, but {target_path} has {targets.size:,} labels")
    if targets.dtype.kind not in "iu" or targets.min(initial=0) < 0 or targets.max(initial=0) > 9:
        values = f"{targets.dtype} from {targets.min(initial=0)} to {targets.max(initial=0)}"
        raise DataError(f"{target_path}: wanted whole numbers from 0 to 9, found {values}")


def _reader(
    kind: str, parts: list[NDArray[Any]], paths: Sequence[Path]
) -> Callable[[NDArray[np.int64]], Float[Tensor, "B 1 H W"]]:
    """A function that reads rows, in ascending order, of both parts as of one array, training part first."""
    border = len(parts[0])

    def read(rows: NDArray[np.int64]) -> Tensor:
        # Rows are in ascending order, so rows of the first part come first.
        first, second = rows[rows < border], rows[rows >= border] - border
        block = np.concatenate([parts[0][first], parts[1][second]]).astype(np.float32)
        bad = rows[~np.isfinite(block.reshape(len(rows), -1)).all(1)]
        if len(bad):
            which = int(bad[0] >= border)
            row = int(bad[0]) - which * border
            raise DataError(f"{paths[which]}: NaN or Inf in row {row} (rows count from 0)")
        return torch.from_numpy(block.reshape(len(rows), *SHAPES[kind]))

    return read


def _limits(read: Callable[[NDArray[np.int64]], Tensor], rows: NDArray[np.int64]) -> dict[str, Any]:
    blocks = [read(rows[i : i + BLOCK_ROWS]) for i in range(0, len(rows), BLOCK_ROWS)]
    return limits(min(float(block.min()) for block in blocks), max(float(block.max()) for block in blocks))


def _write(
    path: Path,
    read: Callable[[NDArray[np.int64]], Tensor],
    rows: NDArray[np.int64],
    spec: InputSpec,
    progress: OnProgress,
) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(rows), *spec.shape))
    for first in range(0, len(rows), BLOCK_ROWS):
        block = normalise(read(rows[first : first + BLOCK_ROWS]), spec.options["normalisation"])
        out[first : first + len(block)] = block.numpy()
        progress(f"reading {path.stem}", first + len(block), len(rows))
    out.flush()

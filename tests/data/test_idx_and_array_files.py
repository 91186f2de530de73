import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from facts import raises

from crossdistill.data.array_file import read_array
from crossdistill.data.idx_file import read_idx
from crossdistill.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("name", ["a.gz", "a"])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5)])
def test_idx_files_are_read(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape)).reshape(shape) % 256
    content = idx(array)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert np.array_equal(read_idx(tmp_path / name, len(shape)), array)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ("0 bytes",)),
        (idx(np.zeros((3, 4)))[:-1], ("12 bytes", 11)),
        (idx(np.zeros((3, 4))) + b"x", ("12 bytes", 13)),
        (idx(np.zeros(12)), ("00000801", "00000802")),
        (struct.pack(">HBB2I", 0, 0x0D, 2, 1, 1) + bytes(4), ("00000802",)),
    ],
)
def test_idx_files_that_are_none(content: bytes, facts: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "bad-idx").write_bytes(content)
    with raises(DataError, "bad-idx", *facts):
        read_idx(tmp_path / "bad-idx", 2)


@pytest.mark.parametrize("share", [0.95, 0.5, 0.05, None])
def test_truncated_gzip_and_flipped_bits(share: float | None, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(idx(np.random.default_rng(0).integers(256, size=(50, 40)))))
    if share is None:
        content[len(content) // 2] ^= 0xFF
    else:
        del content[int(share * len(content)) :]
    (tmp_path / "a.gz").write_bytes(content)
    with raises(DataError, "a.gz"):
        read_idx(tmp_path / "a.gz", 2)


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays(mapped: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(30))
    assert np.array_equal(read_array(tmp_path / "a.npy", mapped=mapped), np.eye(30))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with raises(DataError, "cut.npy"):
        read_array(tmp_path / "cut.npy", mapped=mapped)
    np.save(tmp_path / "names.npy", np.array(["a", "b"]))
    with raises(DataError, "names.npy", "<U1"):
        read_array(tmp_path / "names.npy", mapped=mapped)
    np.save(tmp_path / "pickled.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with raises(DataError, "pickled.npy"):
        read_array(tmp_path / "pickled.npy", mapped=mapped)
    np.savez(tmp_path / "several.npz", a=np.eye(2))
    with raises(DataError, "several.npz"):
        read_array(tmp_path / "several.npz", mapped=mapped)
    with raises(DataError, "none.npy"):
        read_array(tmp_path / "none.npy", mapped=mapped)


def test_missing_idx_file(tmp_path: Path) -> None:
    with raises(DataError, tmp_path / "none"):
        read_idx(tmp_path / "none", 1)

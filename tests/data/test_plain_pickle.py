"""The reader of plain pickles: what `pickle.loads` gives, and nothing that would run."""

import hashlib
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cifar_archives import Pickled, batch, meta10
from facts import raises

from crossdistill.data.plain_pickle import read_plain
from crossdistill.errors import DataError

PLAIN = {
    "numbers": [0, 255, 256, 65535, -1, 2**31 - 1, 2**40, -(2**70), 1.5, True, False, None],
    b"texts": ("a", "ü" * 300, b"\x00\xff", b"x" * 70000, ()),
    3: {"nested": [[], {}, (1, 2), (1, 2, 3), (1, 2, 3, 4)]},
}


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(two, np.ndarray) and one.dtype == two.dtype and bool(np.array_equal(one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return bool(one == two) and type(one) is type(two)


def test_the_official_class_names_of_cifar10_are_written_byte_by_byte() -> None:
    # The checksum of batches.meta in the official archive, as torchvision lists it.
    assert hashlib.md5(meta10()).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"


@pytest.mark.parametrize("content", [meta10(), batch(3, "labels", [0, 4, 1], 0), batch(300, "labels", [1] * 300, 0)])
def test_files_of_python_2_are_read_as_pickle_reads_them(content: bytes) -> None:
    assert same(read_plain(content, "file"), pickle.loads(content, encoding="bytes"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_and_arrays_of_python_3_are_read(protocol: int) -> None:
    arrays = [np.arange(12).reshape(3, 4).astype(kind) for kind in ("u1", "<i8", ">f4", "f8", "?")]
    values = {**PLAIN, "arrays": [*arrays, np.asfortranarray(arrays[0])], "twice": [arrays[0], arrays[0]]}
    content = pickle.dumps(values, protocol)
    if protocol < 5:
        assert same(read_plain(content, "file"), values)
    else:
        # Protocol 5 hands arrays over by another function.
        with raises(DataError, "_frombuffer"):
            read_plain(content, "file")
        assert same(read_plain(pickle.dumps(PLAIN, 5), "file"), PLAIN)


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_function_of_a_file_is_called(protocol: int) -> None:
    for value in (Runs(print, "run"), Runs(eval, "1"), [Runs(np.ones, 3)], {"data": Runs(np.load, "x")}, Runs(int)):
        with raises(DataError, "nothing of it was run"):
            read_plain(pickle.dumps({"data": value}, protocol), "file")
    with raises(DataError, "posix.system"):
        read_plain(pickle.dumps(Runs(os.system, "exit 1"), protocol), "file")
    with raises(DataError):
        read_plain(pickle.dumps(np.array([Runs(print, "run")], dtype=object), protocol), "file")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02.",
        b"\x80\x63N.",
        b"\x80\x02]q\x00h\x07.",
        b"\x80\x02]]]K\x01a.u.",
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.",
        b"\x80\x02(t\x94R.",
        b"\x80\x02T\xff\xff\xff\xff.",
        b"\x80\x02" + b"]" * 3 + b"e.",
        b"c" + b"x" * 500,
        pickle.dumps(object(), 2),
        pickle.dumps(np.arange(3), 2)[:-20],
        pickle.dumps(np.array(["text"]), 2),
    ],
)
def test_damaged_and_foreign_content_is_refused(content: bytes) -> None:
    with raises(DataError, "file.pkl", "byte", len(content)):
        read_plain(content, "file.pkl")


def test_no_part_of_a_file_is_read_as_a_whole() -> None:
    content = Pickled().of({"labels": [1, 2, 300], "label_names": ["a", "b"]})
    assert read_plain(content, "file") == {b"labels": [1, 2, 300], b"label_names": [b"a", b"b"]}
    for end in range(len(content)):
        with raises(DataError, end):
            read_plain(content[:end], "file")


def test_values_that_refer_to_each_other_stay_small() -> None:
    laughs: list[Any] = ["x"]
    for _ in range(40):
        laughs = [laughs, laughs]
    read = read_plain(pickle.dumps(laughs, 2), "file")
    assert read[0] is read[1]

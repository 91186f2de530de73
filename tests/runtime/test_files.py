"""Half of a file is never there: not after an exception, a kill, a full disk, or two writers at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from facts import raises

from crossdistill.errors import StorageError
from crossdistill.runtime.files import atomic_file, atomic_folder, flush, reserve, write_json, write_text
from crossdistill.runtime.hashing import file_hash, key_hash


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own; it prints a line when it is where the test wants it."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_there_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent, "elsewhere, the last step could be a copy"
    assert (path.read_text(), names(path.parent)) == ("new", {"file.txt"})


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half of the n") / 0
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file.txt"}
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "stage") as temporary:
        (temporary / "weights").write_text("half") / 0
    assert names(tmp_path) == {"file.txt"}


def test_a_folder_appears_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "stage"
    with atomic_folder(path) as temporary:
        (temporary / "weights").write_text("all")
        assert not path.exists()
    assert (path / "weights").read_text() == "all"
    assert path.stat().st_mode & 0o777 == 0o755
    assert names(path.parent) == {"stage"}


def test_whoever_is_second_leaves_the_first_ones_folder(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    with atomic_folder(path) as mine:
        (mine / "weights").write_text("mine")
        with atomic_folder(path) as theirs:
            (theirs / "weights").write_text("theirs")
    assert (path / "weights").read_text() == "theirs"
    assert names(tmp_path) == {"stage"}


def test_many_processes_write_one_folder(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from crossdistill.runtime.files import atomic_folder
        who, path, start = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
        print("ready", flush=True)
        while time.time() < start: time.sleep(0.001)
        with atomic_folder(path) as folder:
            for name in ("a", "b", "c"): (folder / name).write_text(who * 1000)
    """
    start = time.time() + 4
    processes = [child(code, who, tmp_path / "stage", start) for who in "123"]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert names(tmp_path) == {"stage"}
    texts = {(tmp_path / "stage" / name).read_text() for name in ("a", "b", "c")}
    assert len(texts) == 1, "all files are one writer's"
    assert texts <= {who * 1000 for who in "123"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_before_the_last_step_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    old = tmp_path / "target"
    if kind == "file":
        write_text(old, "old")
    code = """
        import sys, time
        from pathlib import Path
        from crossdistill.runtime.files import atomic_file, atomic_folder
        kind, path = sys.argv[1], Path(sys.argv[2])
        with (atomic_file if kind == "file" else atomic_folder)(path) as temporary:
            (temporary if kind == "file" else temporary / "part").write_text("new")
            print("written", flush=True)
            time.sleep(60)
    """
    process = child(code, kind, old)
    assert process.stdout.readline() == "written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert (old.read_text() == "old") if kind == "file" else (not old.exists())
    # Files of the killed process do not disturb the next one.
    if kind == "file":
        write_text(old, "newer")
        assert old.read_text() == "newer"
    else:
        with atomic_folder(old) as temporary:
            (temporary / "part").write_text("newer")
        assert (old / "part").read_text() == "newer"


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from crossdistill.errors import StorageError
    from crossdistill.runtime.files import atomic_folder, write_text
    path = Path(sys.argv[1])
    if sys.argv[2] == "checkpoint":
        import torch
        from crossdistill.run_folder.checkpoint import Checkpoint, save_checkpoint
        large = {"some": torch.zeros(9999)}
    # The system refuses to make any file larger than this, as a full disk would.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    def fill():
        with atomic_folder(path) as folder:
            (folder / "some").write_text("x" * 100_000)

    writers = {
        "text": [lambda: write_text(path, "x" * 100_000)],
        "folder": [fill],
        "checkpoint": [
            lambda: save_checkpoint(path, Checkpoint(0, 0, 1, large, {}), keep=1),
            lambda: save_checkpoint(path, Checkpoint(0, 0, 1, {}, large), keep=1),
        ],
    }
    for write in writers[sys.argv[2]]:
        try:
            write()
            print("no error")
        except StorageError as error:
            print(f"StorageError: {error}")
"""


@pytest.mark.parametrize("what", ["text", "folder", "checkpoint"])
def test_a_full_disk_is_said_and_the_old_is_intact(tmp_path: Path, what: str) -> None:
    path = tmp_path / "target"
    if what == "text":
        write_text(path, "old")
    before = names(tmp_path)
    process = child(FULL, path, what)
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    lines = out.splitlines()
    assert len(lines) == (2 if what == "checkpoint" else 1)
    for line in lines:
        assert line.startswith(f"StorageError: could not write {path}"), out + error
        assert "everything written before is intact" in line
        assert "--resume" in line
    assert {name for name in names(tmp_path) if name.startswith(".")} == set(), "nothing half-written stays"
    if what == "checkpoint":
        assert names(path) == set()
    else:
        assert names(tmp_path) == before
        assert what == "folder" or path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (atomic_file, atomic_folder):
        with raises(StorageError, tmp_path / "file", "Not a directory"), make(tmp_path / "file" / "x" / "y"):
            pass


def test_json_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    with raises(ValueError, "JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert key_hash({"a": 1, "b": (2, 3)}) == key_hash({"b": [2, 3], "a": 1})
    assert key_hash({"a": 1}) != key_hash({"a": 2})
    assert key_hash(["ab", "c"]) != key_hash(["a", "bc"])


@pytest.mark.parametrize("native", [True, False])
def test_room_is_taken_or_at_least_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """macOS has neither call."""
    if not native:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.delattr(os, "fdatasync", raising=False)
    with (tmp_path / "file").open("wb+") as file:
        file.write(b"beginning")
        file.flush()
        reserve(file.fileno(), 2**20)
        flush(file.fileno())
        file.seek(0)
        assert file.read(9) == b"beginning"
        with raises(OSError) as refused:
            reserve(file.fileno(), 2**60)
        assert refused.value.errno in {errno.ENOSPC, errno.EFBIG, errno.EINVAL}

"""Runs that cannot go on: numbers that are not finite, damaged files, a full disk, folders of other runs."""

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from command_line import MOST_SENTENCES, Command, Said, command, has, process

from crossdistill.report import Report
from crossdistill.runtime.files import read_sealed, write_sealed

FILES = Path(__file__).resolve().parent / "recipe_files.py"
SPEAKERS = ("ann", "bob", "cy")


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("*"))


def test_a_loss_that_is_not_finite_stops_the_run(digits: None, tmp_path: Path) -> None:
    """A real process: which step, which terms, which rows; and the last good checkpoint is there."""
    words = ["av-digits/supervised", "--tiny", "--set", "stages.0.optimizer.learning_rate=1e30"]
    said = process("run", *words, "--set", "checkpoints.steps=1", "--out", "out", cwd=tmp_path)
    assert said.status == 1
    has(
        said,
        "stage 'supervised-image', epoch 0, step 1: NaN or Inf in gradient_norm, loss, raw/task, weighted/task",
        "the batch holds the sample ids [",
        "The last good checkpoint is kept: out/checkpoints/00-00000-0000001",
        "lower the learning rate or set clip_norm",
    )
    assert checkpoints(tmp_path / "out") == ["00-00000-0000001"]
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "out" / "results.json").exists()


def _row_with_inf() -> int:
    sys.path.insert(0, str(FILES.parent))
    from recipe_files import hides_nan

    return int(hides_nan().data.splits["train"][5])


def test_inf_in_the_data_names_the_batch_that_holds_it(crossdistill: Command) -> None:
    live = ("--set", "stages.kd.source=live", "--set", "checkpoints.steps=1")
    said = crossdistill("run", f"{FILES}:hides_nan", "--out", "out", *live)
    has(said, "stage 'kd', epoch 0, step", "the batch holds the sample ids [")
    ids = json.loads(said.err.partition("sample ids ")[2].partition("]")[0] + "]")
    assert _row_with_inf() in ids
    assert len(ids) == 12


def test_inf_in_what_a_bank_would_hold_names_the_sample(crossdistill: Command) -> None:
    said = crossdistill("run", f"{FILES}:hides_nan", "--out", "out")
    has(said, "logits is NaN or Inf for the samples", "look at these samples")
    assert _row_with_inf() == int(said.complaint().partition("for the samples ")[2].partition(";")[0])


def test_nan_in_own_arrays_is_refused_before_training(tmp_path: Path) -> None:
    said = process("run", f"{FILES}:holds_nan", "--out", "out", cwd=tmp_path)
    has(said, "dataset 'mine': 'second' holds NaN or Inf in 1 of 120 rows: 7")
    assert not (tmp_path / "out").exists()


def test_nan_on_the_validation_split(crossdistill: Command) -> None:
    sys.path.insert(0, str(FILES.parent))
    from recipe_files import hides_nan_in_validation

    row = int(hides_nan_in_validation().data.splits["validation"][3])
    said = crossdistill("run", f"{FILES}:hides_nan_in_validation", "--out", "out")
    has(said, "stage 'kd': NaN or Inf on the validation split, for the sample ids", f"[{row}]")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """MNIST, recordings and noise, as little as there can be."""
    root = tmp_path / "raw"
    (root / "mnist").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, rows in (("train", 60), ("t10k", 20)):
        digits = (np.arange(rows) % 10).astype(np.uint8)
        images = rng.integers(0, 255, (rows, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", digits)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (root / "mnist" / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    speech = root / "free-spoken-digit-dataset" / "recordings"
    speech.mkdir(parents=True)
    (root / "esc10").mkdir()
    wave = rng.standard_normal(4000) / 10
    for name in [f"{digit}_{speaker}_0.wav" for digit in range(10) for speaker in SPEAKERS]:
        soundfile.write(speech / name, wave, 8000)
    for number in range(3):
        soundfile.write(root / "esc10" / f"{number}.wav", rng.standard_normal(20000) / 10, 8000)
    return root


def test_a_truncated_idx_file_in_a_real_process(raw: Path, tmp_path: Path) -> None:
    path = raw / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:5000])
    said = process("run", "av-mnist/kd", "--set", f"data.root={raw}", "--out", "out", cwd=tmp_path)
    assert said.status == 1
    has(said, f"{path}: truncated: shape (60, 28, 28) needs 47,040 bytes, found 4,984")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist/t10k-labels-idx1-ubyte", ["truncated"]),
        ("free-spoken-digit-dataset/recordings/3_bob_0.wav", ["truncated: it promises 8,000 bytes of sound"]),
        ("esc10/1.wav", ["truncated"]),
    ],
)
def test_truncated_files_are_named(
    crossdistill: Command, raw: Path, name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(raw.parent / "kept"))
    path = raw / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    has(crossdistill("run", "av-mnist/supervised", "--set", f"data.root={raw}"), str(path), *words)


def test_data_that_are_not_there(crossdistill: Command, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSDISTILL_DATA", raising=False)
    has(crossdistill("run", "av-mnist/kd"), "av-mnist needs downloaded data: set data.root", "CROSSDISTILL_DATA")
    has(crossdistill("run", "av-mnist/kd", "--set", "data.root=nosuch"), "the folder nosuch does not exist")
    has(crossdistill("run", "av-digits/kd", "--set", "data.speech=nosuch"), "the folder nosuch does not exist")
    (raw / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    has(
        crossdistill("run", "av-mnist/kd", "--set", f"data.root={raw}"),
        "lacks t10k-images-idx3-ubyte.gz or t10k-labels",
    )


@pytest.mark.parametrize(("kind", "row"), [("image", 3), ("audio", 17)])
def test_arrays_with_nan_name_the_file_and_the_row(crossdistill: Command, tmp_path: Path, kind: str, row: int) -> None:
    arrays = {"image": np.ones((20, 28, 28), np.float32), "audio": np.ones((20, 112, 112), np.float32)}
    arrays[kind][row, 2, 2] = np.nan
    for name, array in arrays.items():
        (tmp_path / "avmnist" / name).mkdir(parents=True)
        for part in ("train", "test"):
            np.save(tmp_path / "avmnist" / name / f"{part}_data.npy", array if part == "test" else np.ones_like(array))
    for part in ("train", "test"):
        np.save(tmp_path / "avmnist" / f"{part}_labels.npy", np.arange(20) % 10)
    said = crossdistill("run", "av-mnist/kd", "--set", f"data.root={tmp_path}", "--set", "data.split=sample")
    has(said, f"{tmp_path}/avmnist/{kind}/test_data.npy: NaN or Inf in row {row}")


def limited(size: int, *words: object, cwd: Path) -> Said:
    """A real process in which no file can grow beyond so many bytes: to a program, the same as a full disk."""
    done = subprocess.run(
        command(*words),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    return Said(done.returncode, done.stdout, done.stderr)


SMALL = ("av-digits/supervised", "--tiny", "--set", "stages.0.optimizer.name=sgd", "--set", "checkpoints.steps=2")


@pytest.mark.slow
def test_a_full_disk(digits: None, tmp_path: Path, crossdistill: Command) -> None:
    """After the first epoch checkpoints hold the best weights too, and no longer fit."""
    said = limited(100_000, "run", *SMALL, "--out", "out", cwd=tmp_path)
    assert said.status == 1
    has(
        said,
        "could not write out/checkpoints/00-",
        "MB are free there",
        "everything written before is intact",
        "--resume",
    )
    out = tmp_path / "out"
    assert checkpoints(out) == ["00-00000-0000002", "00-00000-0000004"]
    assert not list(out.rglob("*.tmp"))
    # There is room again.
    assert crossdistill("run", *SMALL, "--out", out, "--resume").status == 0
    assert crossdistill("run", *SMALL, "--out", "whole").status == 0
    for name in ("student/model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("size", [0, 1_000, 20_000, 66_500])
def test_wherever_the_disk_is_full_the_message_is_plain(
    digits: None, tmp_path: Path, crossdistill: Command, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In recipe.yaml, in a checkpoint, in the metrics, at the end in the student's folder."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        words = [*SMALL[:-1], f"checkpoints.steps={1 if size == 20_000 else 1000}"]
        said = crossdistill("run", *words, "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    has(said, "could not write out/", "intact")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_folder_that_cannot_be_written(digits: None, crossdistill: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    has(crossdistill("run", *SMALL, "--out", "file/out"), "could not write file/out/")


def test_a_folder_that_holds_a_run_already(crossdistill: Command, finished_run: Path) -> None:
    said = crossdistill("run", "av-digits/supervised", "--tiny", "--out", finished_run)
    has(said, f"{finished_run} holds a run already", f"crossdistill run {finished_run} --resume", "--out")


def test_resuming_with_another_recipe_says_what_differs(finished_run: Path, crossdistill: Command) -> None:
    words = ["--tiny", "--out", finished_run, "--resume", "--set", "stages.0.batch_size=16", "--set", "data.snr_db=3"]
    said = process("run", "av-digits/supervised", *words)
    assert said.status == 1
    has(
        said,
        f"{finished_run} was started with another recipe",
        "  - stages.0.batch_size: was 32, is 16",
        "  - data.snr_db: was -2.0, is 3.0",
    )
    assert len(said.complaint().splitlines()) == 3
    other = crossdistill("run", "av-digits/kd", "--tiny", "--out", finished_run, "--resume")
    has(other, "name: was 'av-digits/supervised'", "stages: was ['supervised-image'], is ['supervised-mm', 'kd']")


def test_resuming_with_another_number_of_processes(digits: None, tmp_path: Path, crossdistill: Command) -> None:
    said = crossdistill("run", *SMALL, "--out", "out", "--set", "stages.0.optimizer.learning_rate=1e30")
    has(said, "NaN or Inf")
    path = tmp_path / "out" / "environment.json"
    write_sealed(path, {**read_sealed(path), "ranks": 2})
    said = crossdistill("run", "out", "--resume")
    has(
        said, "out cannot be resumed: the number of processes was 2 when it was started, and is 1 now", "share the rows"
    )


def test_damaged_files_of_a_run_are_named(finished_run: Path, tmp_path: Path, crossdistill: Command) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.yaml").write_text("a: [")
    words = ["run", "av-digits/supervised", "--tiny", "--out", out, "--resume"]
    has(crossdistill(*words), "recipe.yaml is damaged")
    (out / "recipe.yaml").write_text((finished_run / "recipe.yaml").read_text())
    (out / "environment.json").write_text("{")
    has(crossdistill(*words), "environment.json is damaged")
    (out / "environment.json").unlink()
    (out / "results.json").write_text("[")
    said = crossdistill(*words)
    assert said.status == 0
    assert "results.json is damaged" in said.err
    assert Report.load(out).rows[-1].method == "supervised"


def test_messages_are_held_to_their_form() -> None:
    """The checks of these tests can fail."""
    for err in ("", "crossdistill: a\nb", "crossdistill: a\n\nb", "Traceback\ncrossdistill: a", "x" * MOST_SENTENCES):
        with pytest.raises(AssertionError):
            Said(1, "", err).complaint()
    with pytest.raises(AssertionError):
        Said(0, "", "crossdistill: a").complaint()
    assert Said(2, "", "before\ncrossdistill: a\n  - b").complaint() == "crossdistill: a\n  - b"

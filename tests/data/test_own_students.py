"""A student that was trained on a folder or a table predicts for files of the same kind, from its own folder alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from own_files import class_folders, picture_rows, write_picture, write_sound, write_table

from crossdistill import Network, Recipe, Stage, run
from crossdistill.data.folder import FolderConfig
from crossdistill.data.table import TableConfig
from crossdistill.errors import DataError
from crossdistill.methods.supervised import Supervised
from crossdistill.recipe import NetworkConfig
from crossdistill.student import load_student

pytest.importorskip("PIL", reason="pip install 'crossdistill[image]'")


def trained(data: object, student: object, out: Path) -> None:
    stage = Stage(name="supervised", method=Supervised(), teachers=(), epochs=6, batch_size=8)
    run(Recipe.model_validate({"data": data, "student": student, "stages": (stage,)}), out)


def test_a_student_of_a_folder_predicts_files(tmp_path: Path) -> None:
    data = {"name": "folder", "path": str(class_folders(tmp_path / "pictures", each=10))}
    trained(data, NetworkConfig(model="cifar-resnet8"), tmp_path / "run")
    student = load_student(tmp_path / "run")
    dataset = FolderConfig.model_validate(data).load()
    source = dataset.inputs["image"]
    rows = dataset.splits["test"]
    files = [source.name_of(row) for row in rows.tolist()]
    wanted = student.logits({"image": source.fetch(rows)}).argmax(1)
    assert [one.label for one in student.predict(files)] == [dataset.classes[i] for i in wanted.tolist()]
    # A picture of another size and kind is prepared alike.
    other = write_picture(tmp_path / "other.gif", 3, size=(40, 30), mode="P")
    assert len(student.predict([other])) == 1
    pixels = np.array(np.random.default_rng(0).integers(0, 255, (20, 20, 3)), np.uint8)
    assert student.predict(pixels)[0].label in dataset.classes
    (tmp_path / "bad.png").write_bytes(b"x")
    for wrong in ("bad.png", "bad.wav"):
        with pytest.raises(DataError, match=wrong):
            student.predict(tmp_path / wrong)


class Pooled(torch.nn.Module):
    """Means over time of the frames that a recording has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 2)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.linear(values[:, 0].sum(2) / lengths[:, None])


class Bytes(torch.nn.Module):
    """Means of embedded bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(257, 8)
        self.linear = torch.nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[..., None].float()
        return self.linear((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))


def test_students_of_recordings_of_any_length_and_of_texts(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="pip install 'crossdistill[audio]'")
    rows = [{**row, "text": f"a {row['label']}"} for row in picture_rows(tmp_path, 16)]
    for number, row in enumerate(rows):
        row["clip"] = write_sound(tmp_path / f"{number}.wav", number % 2, seconds=0.2 + 0.02 * number).name
    path = write_table(tmp_path / "t.csv", rows)
    rendering = {"type": "sound", "rate": 8000, "n_fft": 512, "hop": 128}
    sound = TableConfig.model_validate(
        {"path": path, "inputs": {"sound": {"column": "clip", "rendering": rendering}}, "target": "label"}
    )
    trained(sound, Network(Pooled(), ("sound",)), tmp_path / "heard")
    student = load_student(tmp_path / "heard", Pooled())
    dataset = sound.load()
    assert dataset.inputs["sound"].lengths.tolist() == [1 + round((0.2 + 0.02 * n) * 8000) // 128 for n in range(16)]
    wanted = student.logits({"sound": dataset.inputs["sound"].fetch(torch.arange(4))})
    labels = [one.label for one in student.predict([tmp_path / f"{n}.wav" for n in range(4)])]
    assert labels == [dataset.classes[i] for i in wanted.argmax(1).tolist()]
    text = TableConfig.model_validate({"path": path, "inputs": {"text": "text"}, "target": "label"})
    trained(text, Network(Bytes(), ("text",)), tmp_path / "read")
    (tmp_path / "a.txt").write_text("a dog\n")
    assert load_student(tmp_path / "read", Bytes()).predict(tmp_path / "a.txt")[0].label in ("cat", "dog")


def test_a_student_of_numbers_predicts_raw_numbers(tmp_path: Path) -> None:
    rows = [{"a": 100 + n % 2, "b": n % 5, "class": "ab"[n % 2]} for n in range(40)]
    path = write_table(tmp_path / "t.csv", rows)
    trained({"name": "table", "path": str(path)}, Network(torch.nn.Linear(2, 2), ("numbers",)), tmp_path / "run")
    student = load_student(tmp_path / "run", torch.nn.Linear(2, 2))
    np.save(tmp_path / "row.npy", np.array([101.0, 3.0]))
    numbers = student.inputs["numbers"].options["rendering"]
    prepared = (torch.tensor([[101.0, 3.0]]) - torch.tensor(numbers["mean"])) / torch.tensor(numbers["deviation"])
    wanted = student.logits({"numbers": prepared}).softmax(1).max()
    assert student.predict(os.fspath(tmp_path / "row.npy"))[0].probability == pytest.approx(float(wanted))

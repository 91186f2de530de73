"""Cost of one whole job of distillation from files: this library / a plain loop of 25 lines.

A run distils resnet32 into resnet8 for 5 epochs from folders of JPEGs of CIFAR's size, which this script draws, and
tests the student. The plain loop has a live teacher, a DataLoader with as many workers over the same files, the same
batches, and a validation after each epoch. Both begin with the files and two modules; banks and hashes of files are
made anew in each round.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Script, ratios
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from crossdistill import Network, Recipe, Stage, run
from crossdistill.data.augmentation import Variations
from crossdistill.data.folder import FolderConfig
from crossdistill.methods import KD
from crossdistill.recipe import NetworkConfig
from crossdistill.runtime.progress import Quiet

CLASSES, BATCH, EPOCHS, WORKERS = 10, 64, 5, 2
ROWS = {"train": 3000, "val": 500, "test": 1000}
LIMIT = 0.6


def draw(folder: Path) -> Path:
    """Write smooth random pictures into folders of splits and classes."""
    drawn = np.random.default_rng(0)
    for split, count in ROWS.items():
        for row in range(count):
            file = folder / split / f"class {row % CLASSES}" / f"{row:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((32, 32)).save(file, quality=90)
    return folder


def module(name: str) -> nn.Module:
    """A network of the table, with random weights."""
    torch.manual_seed(0)
    return NetworkConfig(model=name, reads=("image",)).build(CLASSES).module


class Files(torch.utils.data.Dataset):
    """The pictures of a split, as a program without this library reads them."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*/*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.files[row]) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        return (pixels.permute(2, 0, 1).float() / 255 - 0.5) / 0.25, int(self.files[row].parent.name.split()[1])


def plain(folder: Path, student: nn.Module, teacher: nn.Module, device: torch.device) -> float:
    """The loop that anybody writes first; returns the test accuracy."""
    loaders = {
        split: DataLoader(
            Files(folder / split), BATCH, shuffle=split == "train", num_workers=WORKERS, persistent_workers=True
        )
        for split in ROWS
    }
    student.to(device)
    teacher.to(device).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)

    def accuracy(split: str) -> float:
        student.eval()
        with torch.no_grad():
            hits = [(student(x.to(device))["logits"].argmax(1) == y.to(device)).float() for x, y in loaders[split]]
        return float(torch.cat(hits).mean())

    for _ in range(EPOCHS):
        student.train()
        for x, y in loaders["train"]:
            x, y = x.to(device), y.to(device)
            with torch.no_grad():
                wanted = functional.softmax(teacher(x)["logits"] / 4, 1)
            logits = student(x)["logits"]
            soft = functional.kl_div(functional.log_softmax(logits / 4, 1), wanted, reduction="batchmean")
            optimizer.zero_grad()
            (functional.cross_entropy(logits, y) + 16 * soft).backward()
            optimizer.step()
        accuracy("val")
    return accuracy("test")


def recipe_of(folder: Path, device: str, epochs: int = EPOCHS, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The same job by this library; `changes` are the settings of its augmentation."""
    return Recipe(
        name="job",
        data=FolderConfig(path=folder, workers=WORKERS, augmentation=Variations.model_validate(changes or {})),
        student=Network(module("cifar-resnet8"), ("image",)),
        teachers={"big": Network(module("cifar-resnet32"), ("image",))},
        stages=(Stage(method=KD(temperature=4), epochs=epochs, batch_size=BATCH),),
        device=device,
    )


def main() -> None:
    """Measure whole jobs."""
    script = Script(__file__)
    folder = draw(script.scratch / "pictures")
    os.environ["CROSSDISTILL_CACHE"] = str(script.scratch / "cache")

    def ours(channels_last: bool) -> None:
        shutil.rmtree(script.scratch / "cache", ignore_errors=True)
        shutil.rmtree(script.scratch / "out", ignore_errors=True)
        recipe = recipe_of(folder, script.device.type).model_copy(update={"channels_last": channels_last})
        run(recipe, script.scratch / "out", display=Quiet())

    def theirs() -> None:
        plain(folder, module("cifar-resnet8"), module("cifar-resnet32"), script.device)

    default, last, loop = script.alternate([lambda: ours(False), lambda: ours(True), theirs], 3, warm=0)
    what = "a job of kd from JPEG files, resnet32 to resnet8, 5 epochs and test"
    script.ratio(f"{what} / a plain loop", ratios(default, loop), LIMIT)
    script.ratio(f"{what}, channels_last=true / a plain loop", ratios(last, loop), LIMIT)


if __name__ == "__main__":
    main()

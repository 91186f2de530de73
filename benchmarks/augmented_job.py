"""Cost of augmented jobs of distillation from files: this library / a plain loop that augments whole batches.

Both crop and flip batches of tensors. First the teacher is live, an endless number of different views; then the
library has four views of each row, whose outputs of the teacher are stored. The pictures, networks and epochs are those
of kd_job.py.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from kd_job import BATCH, CLASSES, EPOCHS, ROWS, WORKERS, Files, draw, module, recipe_of
from measure import Script, ratios
from sizes import Course, job_of
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from crossdistill import run
from crossdistill.planning.plan import prepare
from crossdistill.runtime.progress import Quiet

PAD = 4
EPOCH_LIMIT, TOTAL_LIMIT, VIEWS_LIMIT = 1.05, 1.10, 0.7


def augmented(pictures: Tensor) -> Tensor:
    """Each picture of a batch (B, 3, H, W) shifted by up to `PAD` pixels over zeros, and flipped or not."""
    rows, _, height, width = pictures.shape
    padded = functional.pad(pictures, (PAD,) * 4)
    top, left = torch.randint(0, 2 * PAD + 1, (2, rows, 1))
    down, right = top + torch.arange(height), left + torch.arange(width)
    right = torch.where(torch.rand(rows, 1) < 0.5, right.flip(1), right)
    return padded[torch.arange(rows)[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


class Plain:
    """The loop that anybody writes first, with a live teacher."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device, self.student = device, module("cifar-resnet8").to(device)
        self.teacher = module("cifar-resnet32").to(device).eval()
        self.loaders = {
            split: DataLoader(
                Files(folder / split), BATCH, shuffle=split == "train", num_workers=WORKERS, persistent_workers=True
            )
            for split in ROWS
        }
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3)

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.loaders[split]:
            yield x.to(self.device), y.to(self.device)

    def accuracy(self, split: str) -> float:
        """The accuracy on a split."""
        self.student.eval()
        with torch.no_grad():
            hits = [(self.student(x)["logits"].argmax(1) == y).float() for x, y in self._batches(split)]
        return float(torch.cat(hits).mean())

    def epoch(self) -> None:
        """An epoch with its validation."""
        self.student.train()
        for x, y in self._batches("train"):
            x = augmented(x)
            with torch.no_grad():
                wanted = functional.softmax(self.teacher(x)["logits"] / 4, 1)
            logits = self.student(x)["logits"]
            soft = functional.kl_div(functional.log_softmax(logits / 4, 1), wanted, reduction="batchmean")
            self.optimizer.zero_grad()
            (functional.cross_entropy(logits, y) + 16 * soft).backward()
            self.optimizer.step()
        self.accuracy("val")


def changes(views: int | None) -> dict[str, object]:
    """The same augmentation in this library's settings."""
    return {"inputs": {"image": {"crop": PAD, "flip": True}}, "views": views}


def main() -> None:
    """Measure an epoch, and whole jobs."""
    script = Script(__file__)
    folder, device = draw(script.scratch / "pictures"), script.device
    os.environ["CROSSDISTILL_CACHE"] = str(script.scratch / "cache")
    what = f"crop and flip, resnet32 to resnet8 from JPEG files, {CLASSES} classes"

    def job(views: int | None) -> None:
        for made in ("cache", "out"):
            shutil.rmtree(script.scratch / made, ignore_errors=True)
        run(recipe_of(folder, device.type, changes=changes(views)), script.scratch / "out", display=Quiet())

    def theirs() -> None:
        plain = Plain(folder, device)
        for _ in range(EPOCHS):
            plain.epoch()
        plain.accuracy("test")

    live, banked, loop = script.alternate([lambda: job(None), lambda: job(4), theirs], 3, warm=0)
    script.ratio(f"a job of kd with a live teacher, {what} / a plain loop", ratios(live, loop), TOTAL_LIMIT)
    script.ratio(f"a job of kd in 4 banked views, {what} / a plain loop", ratios(banked, loop), VIEWS_LIMIT)
    recipe = recipe_of(folder, device.type, 100, changes(None))
    data = recipe.data.load()
    plan = prepare(recipe, data, device)
    course, plain = Course(plan, job_of(plan, "kd"), device, script.scratch / "course"), Plain(folder, device)
    began = time.monotonic()
    measured = ratios(*script.alternate([course.epoch, plain.epoch], 5))
    print(f"  epochs took {time.monotonic() - began:.0f} s", flush=True)
    script.ratio(f"an epoch of kd with a live teacher, {what} / a plain loop", measured, EPOCH_LIMIT)
    course.close()


if __name__ == "__main__":
    main()

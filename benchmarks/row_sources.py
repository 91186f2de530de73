"""Cost of reading rows from files by workers: rows per second, memory, and an epoch of banked distillation.

The files are JPEGs of 64 x 64 pixels that this script draws. The plain side is a DataLoader over the same decoding,
with the same batches and the same number of workers.
"""

import gc
import os
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resident import child
from torch import Tensor, nn
from torch.utils.data import DataLoader

ROWS, BATCH, WORKERS, CLASSES = 5000, 64, 2, 10
SIDE = 64
RATE_LIMIT = 1 / 0.9
MEMORY_LIMIT = EPOCH_LIMIT = 1.10


class Pictures:
    """JPEG files in a folder with their classes, decoded when they are read; `repeat` names each file so many times."""

    def __init__(self, folder: Path, rows: int = ROWS, repeat: int = 1) -> None:
        # Bytes in one array: Python's objects would be copied into each worker as their counters change.
        files = sorted(folder.glob("*.jpg"))[:rows]
        self._folder, self._names = str(folder), np.array([file.name for file in files] * repeat, dtype="S16")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(os.path.join(self._folder, self._names[row].decode())) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        return pixels.permute(2, 0, 1).float() / 255, row % CLASSES


def draw(folder: Path, rows: int = ROWS) -> Path:
    """Write pictures of random, smooth colours."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(0)
    for row in range(rows):
        coarse = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(folder / f"{row:06d}.jpg", quality=90)
    return folder


def dataset_of(pictures: Pictures) -> "object":
    """The pictures as this library's data."""
    from crossdistill import Dataset

    targets = np.arange(len(pictures)) % CLASSES
    return Dataset.from_torch("pictures", pictures, {"image": 0}, targets=targets, key="drawn", workers=WORKERS)


def passed(dataset: object, rows: Tensor) -> int:
    """Read rows by this library's workers."""
    from crossdistill.data.workers import Request

    parts = (Request(part) for part in rows.split(BATCH))
    return sum(len(batch) for batch in dataset.batches(parts, torch.device("cpu")))


def private_mb(folder: Path, repeat: int) -> float:
    """Private memory of this process and its workers after one pass over a part of the rows, in MB."""
    dataset = dataset_of(Pictures(folder, 1000, repeat))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    stream_rows = order[:2000] if repeat > 1 else order.repeat(2)
    passed(dataset, stream_rows)
    gc.collect()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return sum(_private(process) for process in (str(os.getpid()), *children))


def _private(process: str) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def network(width: int) -> nn.Module:
    """A small convolutional network."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def rates(script: object, folder: Path) -> None:
    """Rows per second of both loaders."""
    from measure import ratios

    pictures = Pictures(folder)
    dataset = dataset_of(pictures)
    plain: DataLoader = DataLoader(
        pictures, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, multiprocessing_context="fork"
    )
    orders = torch.Generator().manual_seed(0)

    def ours() -> None:
        passed(dataset, torch.randperm(len(pictures), generator=orders))

    def theirs() -> None:
        for _ in plain:
            pass

    measured = ratios(*script.alternate([ours, theirs], 9))
    rows = [ROWS / sorted(side)[len(side) // 2] for side in (measured.first, measured.second)]
    print(f"  {rows[0]:,.0f} rows/s, plain DataLoader {rows[1]:,.0f} rows/s", flush=True)
    script.ratio(f"pass over {ROWS} JPEG files with {WORKERS} workers, ours / a plain DataLoader", measured, RATE_LIMIT)


def epochs(script: object, folder: Path) -> None:
    """An epoch of KD with a banked teacher / of the student alone, both from the files."""
    from measure import ratios
    from sizes import Course, job_of

    from crossdistill import Network, Recipe, Stage
    from crossdistill.planning.plan import prepare

    data = dataset_of(Pictures(folder))
    courses = []
    for method in ("kd", "supervised"):
        torch.manual_seed(0)
        stage = Stage(method=method, epochs=100, batch_size=BATCH, source="banked" if method == "kd" else "auto")
        teachers = {"big": Network(network(32), ("image",))} if method == "kd" else {}
        recipe = Recipe(
            data=data,
            student=Network(network(8), ("image",)),
            student_name="small",
            teachers=teachers,
            stages=(stage,),
            device=script.device.type,
        )
        plan = prepare(recipe, data, script.device)
        courses.append(Course(plan, job_of(plan, stage.name), script.device, script.scratch / method))
    measured = ratios(*script.alternate([course.epoch for course in courses], 7))
    script.ratio("kd epoch from files, banked teacher / student alone", measured, EPOCH_LIMIT)
    for course in courses:
        course.close()


def main() -> None:
    """Measure all three."""
    from measure import Script

    script = Script(__file__)
    folder = draw(script.scratch / "pictures")
    rates(script, folder)
    few, many = (
        statistics.median(child(__file__, "--measure", str(folder), repeat)["mb"] for _ in range(3))
        for repeat in ("1", "50")
    )
    print(f"  private memory: {few:.0f} MB with 1,000 files, {many:.0f} MB with 50,000", flush=True)
    script.value("private memory with its workers, 50,000 files / 1,000 files", many / few, MEMORY_LIMIT)
    epochs(script, folder)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        import json

        at = sys.argv.index("--measure")
        print(json.dumps({"mb": private_mb(Path(sys.argv[at + 1]), int(sys.argv[at + 2]))}))
    else:
        main()

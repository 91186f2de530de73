"""Time from the start of a run to its first step: 50,000 picture files / an array in memory, of the same pictures.

The files have been hashed and the banks filled by a first start, which is not timed. Each side runs in a process of its
own; the clock starts after the import of the library.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from resident import child
from torch import Tensor, nn

ROWS, CLASSES, SIDE = 50_000, 10, 32
LIMIT = 3.0


def draw(folder: Path) -> None:
    """Write smooth random pictures into folders of classes, and the same pixels as one array."""
    drawn, pixels = np.random.default_rng(0), np.empty((ROWS, 3, SIDE, SIDE), np.uint8)
    for row in range(ROWS):
        file = folder / "pictures" / f"class {row % CLASSES}" / f"{row:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIDE, SIDE)).save(file, quality=90)
        with Image.open(file) as picture:
            pixels[row] = np.array(picture).transpose(2, 0, 1)
    np.save(folder / "pixels.npy", pixels)


class Small(nn.Module):
    """Two linear layers: the time of a step is nothing beside that of the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width), nn.ReLU(), nn.Linear(width, CLASSES)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 10)."""
        logits: Tensor = self.layers(pictures)
        return logits


def first_step(folder: Path, side: str) -> float:
    """Seconds from the description of the data to the first step."""
    os.environ["CROSSDISTILL_CACHE"] = str(folder / f"cache {side}")
    from crossdistill import Dataset, InputSpec, Network, Recipe, Stage, run
    from crossdistill.data.folder import FolderConfig
    from crossdistill.methods import KD
    from crossdistill.runtime.progress import Quiet
    from crossdistill.training.step import Training

    seen: list[float] = []
    step = Training.step

    def timed(self: Training, *arguments: object) -> object:
        seen.append(time.perf_counter())
        return step(self, *arguments)

    Training.step = timed
    began = time.perf_counter()
    if side == "files":
        data = FolderConfig(path=folder / "pictures", workers=2)
    else:
        values = torch.from_numpy(np.load(folder / "pixels.npy")).float() / 255
        targets = torch.arange(ROWS) % CLASSES
        names, spec = [f"class {number}" for number in range(CLASSES)], InputSpec("image", tuple(values.shape[1:]))
        data = Dataset.from_arrays("array", {"image": values}, targets, classes=names, input_specs={"image": spec})
    stage = Stage(method=KD(), epochs=1, steps=2, batch_size=64)
    teacher, student = (Network(Small(width), ("image",)) for width in (64, 16))
    shutil.rmtree(folder / side, ignore_errors=True)
    run(Recipe(name="start", data=data, student=student, teachers={"big": teacher}, stages=(stage,)), folder / side,
        display=Quiet())  # fmt: skip
    return seen[0] - began


def main() -> None:
    """Measure both sides in turn."""
    from measure import Script, ratios

    script = Script(__file__)
    draw(script.scratch)
    seconds: dict[str, list[float]] = {"files": [], "memory": []}
    for number in range(1 + script.rounds(3)):
        for side, found in seconds.items():
            taken = child(__file__, "--measure", str(script.scratch), side)["seconds"]
            if number:
                found.append(taken)
    measured = ratios(seconds["files"], seconds["memory"])
    script.ratio("second start, 50,000 JPEG files / the same pictures in memory: the first step", measured, LIMIT)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        at = sys.argv.index("--measure")
        print(json.dumps({"seconds": first_step(Path(sys.argv[at + 1]), sys.argv[at + 2])}))
    else:
        main()

"""Time and private memory of `kd` and `route` for 16 times as many samples, with banks on disk.

The data are mapped files, as for large data sets. Teachers and student are LeNet5s, so that filling their banks, which
is included, takes no longer than training.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from resident import child, greatest_private

TRAIN, VALIDATION, TIMES = 1024, 1024, 16
"""VALIDATION is the number of rows of a validation pass, so that both sizes need the same memory for it."""
BATCH_ROWS, TEACHERS = 256, 4


def run(times: int) -> dict[str, float]:
    """Run both stages over `times` times the rows: seconds, and the peak of private memory in MB."""
    from sizes import SHAPES, Course

    from crossdistill.bank.bank import BankSettings
    from crossdistill.batch import InputSpec
    from crossdistill.data.dataset import Dataset
    from crossdistill.methods import KD, Route
    from crossdistill.planning.plan import prepare
    from crossdistill.recipe import NetworkConfig, Recipe
    from crossdistill.runtime.distributed import Devices
    from crossdistill.stage import Stage

    with tempfile.TemporaryDirectory() as folder:
        train, validation = TRAIN * times, VALIDATION * times
        rows, shape = train + validation + 2, SHAPES["image"]
        file = Path(folder) / "image.bin"
        with file.open("wb") as stream:
            for part in torch.arange(rows).split(1024):
                stream.write(torch.randn(len(part), *shape).numpy().tobytes())
        image = torch.from_file(str(file), shared=True, size=rows * shape[1] * shape[2]).view(rows, *shape)
        data = Dataset(
            name="mapped",
            inputs={"image": image},
            targets=torch.arange(rows) % 10,
            classes=tuple("0123456789"),
            splits=dict(
                zip(("train", "validation", "test"), torch.arange(rows).split([train, validation, 2]), strict=True)
            ),
            input_specs={"image": InputSpec(kind="array", shape=shape)},
            fingerprint=f"mapped {times}",
        )
        stages = tuple(
            Stage(method=method, epochs=100, batch_size=BATCH_ROWS, source="banked", teachers=teachers)
            for method, teachers in ((KD(), ("teacher-0",)), (Route(), None))
        )
        recipe = Recipe(
            data=data,
            student=NetworkConfig(model="lenet5"),
            student_name="student",
            teachers={f"teacher-{i}": NetworkConfig(model="lenet5") for i in range(TEACHERS)},
            stages=stages,
            device="cpu",
            bank=BankSettings(memory=0),
        )
        began = time.perf_counter(), time.process_time()

        def work() -> None:
            plan = prepare(recipe, data, torch.device("cpu"))
            for job in plan.jobs:
                course = Course(plan, job, Devices(torch.device("cpu")).device, Path(folder) / job.stage.name)
                course.epoch()
                course.close()

        private = greatest_private(work)
        return {
            "wall": time.perf_counter() - began[0],
            "processor": time.process_time() - began[1],
            "private": private,
        }


def main() -> None:
    """Measure child processes with few and with many rows in turn."""
    from measure import Script, quartile_distance

    script = Script(__file__)
    rounds = [[child(__file__, "--measure", str(times)) for times in (TIMES, 1)] for _ in range(script.rounds(2))]
    for what, limit, name in (
        (script.clock, TIMES + 1.0, f"route and kd over {TIMES} times the samples, bank on disk: time"),
        ("private", 1.1, f"route and kd over {TIMES} times the samples, bank on disk: private memory"),
    ):
        values = [many[what] / few[what] for many, few in rounds]
        print(f"  {what}: " + "; ".join(f"{many[what]:.1f} / {few[what]:.1f}" for many, few in rounds), flush=True)
        script.value(name, statistics.median(values), limit, quartile_distance(values))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(run(int(sys.argv[2]))))
    else:
        main()

"""Cost of contrast with a memory: a step of CRD and of RichKD / a step of plain KD, for resnet8x4 on CIFAR's sizes.

The memory has 50,000 rows of 128 numbers on each side, and 16,384 negatives. A step is that of a training loop:
forward, backward, SGD, and the update of the memory. Teachers' outputs are rows of a table in memory, as those of a
held bank.
"""

import torch
from measure import Script, ratios

from crossdistill.batch import Batch
from crossdistill.method import DataSpec, MethodConfig, Progress
from crossdistill.methods import CRD, KD, RichKD, RichKDL
from crossdistill.models import build_network
from crossdistill.outputs import OutputSpec, Signal
from crossdistill.teacher import Live
from crossdistill.testing import FakeTeacher

ROWS, CLASSES, BATCH, NEGATIVES = 50_000, 100, 64, 16_384
LIMIT = 1.5


class Loop:
    """A training loop of one method over random pictures; every call is one step."""

    def __init__(self, config: MethodConfig, teachers: dict[str, int], device: torch.device) -> None:
        torch.manual_seed(0)
        network = build_network("cifar-resnet8x4", classes=CLASSES).to(device)
        pictures = torch.randn(BATCH, 3, 32, 32, device=device)
        spec = network.probe(Batch({"image": pictures[:2]}, torch.arange(2, device=device)))
        specs = {name: OutputSpec(logits=(CLASSES,), embedding=(width,)) for name, width in teachers.items()}
        targets = torch.arange(ROWS) % CLASSES
        self.method = config.build(spec, specs, DataSpec(ROWS, CLASSES, targets, torch.arange(ROWS))).to(device)
        needs = self.method.needs()
        self.student = Live("student", network, needs["student"], trained=True)
        self.teachers = {}
        for name, width in teachers.items():
            given = {Signal.LOGITS: torch.randn(ROWS, CLASSES), Signal.EMBEDDING: torch.randn(ROWS, width)}
            held = {signal: value.to(device) for signal, value in given.items()}
            self.teachers[name] = FakeTeacher(name, specs[name], given=held).select(needs[name])
        parameters = [*network.parameters(), *self.method.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=5e-4)
        self.pictures, self.targets, self.number = pictures, targets.to(device), 0

    def step(self) -> None:
        """One step on the next rows."""
        ids = (torch.arange(BATCH, device=self.pictures.device) * 719 + self.number * BATCH) % ROWS
        batch = Batch({"image": self.pictures}, ids, targets=self.targets[ids])
        step = self.method(batch, self.student, self.teachers, Progress(0, 1, self.number, 782))
        self.optimizer.zero_grad()
        step.loss(BATCH).backward()
        self.optimizer.step()
        self.method.after_step(batch, step)
        self.number += 1


def main() -> None:
    """Measure the steps in turn."""
    script = Script(__file__)
    one, two = {"cnn": 256}, {"cnn": 256, "clip": 768}
    steps = 2 if script.on_cpu else 50
    methods: dict[str, tuple[MethodConfig, dict[str, int], float | None]] = {
        "kd": (KD(fixed=(0.1, 0.9)), one, None),
        "crd, shared negatives": (CRD(fixed=(1.0, 0.8), negatives=NEGATIVES, draw="shared"), one, LIMIT),
        "crd, negatives by row": (CRD(fixed=(1.0, 0.8), negatives=NEGATIVES), one, None),
        "richkd-l": (RichKDL(), two, None),
        "richkd": (RichKD(negatives=NEGATIVES), two, None),
    }
    loops = {name: Loop(config, teachers, script.device) for name, (config, teachers, _) in methods.items()}

    def work(name: str) -> None:
        for _ in range(steps):
            loops[name].step()

    plain, *others = script.alternate([lambda name=name: work(name) for name in loops], 7)
    for seconds, name in zip(others, list(methods)[1:], strict=True):
        script.ratio(f"step of {name} / of kd, resnet8x4, memory of 50,000", ratios(seconds, plain), methods[name][2])


if __name__ == "__main__":
    main()

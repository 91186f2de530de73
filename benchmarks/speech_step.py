"""Cost of a step of multi-distillation at full size: each teacher on its own rows / both on all rows.

Two teachers of HuBERT base's size and a student of two of its blocks, with random weights; a batch of two clips of
speech and two of music, 15.6 s each. The other side is the reference's way (arXiv 2506.07237): every teacher runs all
its 12 blocks on all rows, and what it gives for rows of other domains is dropped. The rest of the step is the same.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from measure import Script, ratios
from resident import peak_mb
from torch import nn

from crossdistill import Batch, Dataset, Network
from crossdistill.backends.hubert_student import hubert_student
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.transformers_body import with_kind
from crossdistill.data.variable_length import Padded
from crossdistill.method import Progress
from crossdistill.methods import MultiDistillation
from crossdistill.outputs import Outputs, picked
from crossdistill.planning.plan import Job, prepare
from crossdistill.recipe import Recipe
from crossdistill.recipes.speech_music import optimizer
from crossdistill.runtime.distributed import Devices
from crossdistill.stage import Stage
from crossdistill.teacher import Live
from crossdistill.training.step import Training

SAMPLES, ROWS = 250_000, 4
DOMAINS = ("speech", "music")
BLOCKS = 12
TEACHERS_LIMIT, STEP_LIMIT, SHORT_LIMIT = 0.55, 0.8, 0.7
ROUNDS = 5


def teacher() -> Network:
    """HuBERT base with random weights, frozen."""
    from transformers import HubertConfig, HubertModel

    module = Pretrained(with_kind(HubertModel(HubertConfig()), "audio", classifier=False, pooled=False))
    return Network(module.eval().requires_grad_(False), ("audio",), module.taps)


def clips() -> Dataset:
    """Noise: as many clips in each split as a batch has, half of them speech."""
    source = torch.Generator().manual_seed(0)
    rows = 3 * ROWS
    parts = dict(zip(("train", "validation", "test"), torch.arange(rows).split(ROWS), strict=True))
    waves = [torch.randn(SAMPLES, generator=source) * 0.1 for _ in range(rows)]
    domain = [DOMAINS[row % 2] for row in range(rows)]
    return Dataset.from_arrays("noise", {"audio": Padded().rows(waves)}, domain=domain, task="none", splits=parts)


class Clocked(Live):
    """A live teacher that adds up the seconds of its calls."""

    def __init__(self, source: Live, script: Script) -> None:
        super().__init__(source.name, source.network, source.signals)
        self.seconds = 0.0
        self.whole: Batch | None = None
        """The batch of the step."""
        self._script = script

    def __call__(self, batch: Batch) -> Outputs:
        """The outputs of some rows of the step's batch."""
        found: list[Outputs] = []
        self.seconds += self._script.timed(lambda: found.append(self.outputs(batch)))
        return found[0]

    def outputs(self, batch: Batch) -> Outputs:
        """As the library computes them."""
        return super().__call__(batch)


class OnAllRows(Clocked):
    """A teacher as in the reference: all blocks on all rows of the step, of which some are read."""

    def outputs(self, batch: Batch) -> Outputs:
        """All outputs, and then those of these rows."""
        assert self.whole is not None
        with torch.no_grad():
            # Without `only`, the pass runs to its end.
            outputs = self.network(self.whole, self.signals)
        rows = torch.isin(self.whole.ids, batch.ids).nonzero().flatten()
        return Outputs(self.name, features={tap: picked(value, rows) for tap, value in outputs.features.items()})


class Side:
    """Steps of a stage whose teachers are called in one of the two ways."""

    def __init__(self, script: Script, job: Job, members: Iterable[nn.Module], way: type[Clocked]) -> None:
        self.teachers = {name: way(source, script) for name, source in job.teachers.items() if isinstance(source, Live)}
        assert self.teachers.keys() == set(DOMAINS), "every teacher is live"
        self.job = replace(job, teachers=self.teachers)
        self.training = Training(self.job, members, Devices(script.device), script.scratch)
        self.of_teachers: list[float] = []
        """Seconds of the teachers in each step."""
        self._epoch = 0

    def __call__(self) -> None:
        """One step."""
        job = self.job
        ((rows, parts),) = self.training.batches(job.order.epoch(self._epoch), self._epoch)
        (batch,) = parts
        for source in self.teachers.values():
            source.whole, source.seconds = batch, 0.0
        progress = Progress(self._epoch, job.stage.epochs, 0, job.order.steps)
        self.training.step(rows, progress, iter([batch]))
        self.of_teachers.append(sum(source.seconds for source in self.teachers.values()))
        self._epoch += 1


def sides(script: Script, data: Dataset, layers: tuple[int, ...]) -> list[Side]:
    """Both ways of a stage that reads these layers, with the same networks."""
    torch.manual_seed(0)
    teachers = {name: teacher() for name in DOMAINS}
    module = hubert_student(2)
    stage = Stage(
        name="translate",
        method=MultiDistillation(layers=dict.fromkeys(DOMAINS, layers)),
        epochs=1_000,
        batch_size=ROWS,
        clip_norm=5.0,
        source="live",
        optimizer=optimizer(1_000),
    )
    recipe = Recipe(
        data=data,
        student=Network(module, ("audio",), module.taps),
        student_name="student",
        teachers=teachers,
        stages=(stage,),
        device=script.device.type,
    )
    plan = prepare(recipe, data, script.device)
    members = [*plan.members.values(), *(job.method for job in plan.jobs)]
    return [Side(script, plan.jobs[0], members, way) for way in (Clocked, OnAllRows)]


def compared(script: Script, layers: tuple[int, ...], limits: tuple[float | None, float]) -> None:
    """Measure both ways in turn, the teachers' part first."""
    ours, theirs = sides(script, clips(), layers)
    ours()
    print(f"  layers {layers}: peak of the process {peak_mb():,.0f} MB after a step", flush=True)
    theirs()
    print(f"  layers {layers}: peak of the process {peak_mb():,.0f} MB after one of the reference's way", flush=True)
    steps = script.alternate([ours, theirs], ROUNDS, warm=0)
    count = len(steps[0])
    parts = ratios(ours.of_teachers[-count:], theirs.of_teachers[-count:])
    what = f"layers {', '.join(map(str, layers))}, own rows / all rows and blocks"
    script.ratio(f"teachers' part of a step of multi-distillation, {what}", parts, limits[0])
    script.ratio(f"step of multi-distillation, {what}", ratios(*steps), limits[1])


def main() -> None:
    """Measure with the published layers, and with two that leave the last four blocks out."""
    script = Script(__file__)
    compared(script, (4, 8, BLOCKS), (TEACHERS_LIMIT, STEP_LIMIT))
    compared(script, (4, 8), (None, SHORT_LIMIT))


if __name__ == "__main__":
    main()

"""MST-Distill for one student, computed by the library with banks and by the reference implementation."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import Ratios, Script, Work, ratios
from sizes import Course, av_mnist, in_batches, job_of, masks_mb, random_data, reference_of
from torch import Tensor

from crossdistill.planning.plan import prepare

BATCH_ROWS = 64
PUBLISHED_EPOCHS = 100


class BothWays:
    """The same networks, masks and rows for both sides; on the library's side each stage has its own copies of them."""

    def __init__(
        self,
        script: Script,
        student: str,
        train: int,
        validation: int,
        batch_size: int = BATCH_ROWS,
        sides: Sequence[str] = ("library", "reference"),
        settings: Sequence[str] = (),
    ) -> None:
        self._data = data = random_data(train, validation)
        self.masks_mb = 0.0
        """Memory of the masks' weights in the latest plan, MB."""
        self._recipe = av_mnist(student, batch_size, train + validation, script.device, settings)
        self._reference = None
        if "reference" in sides:
            plan = prepare(self._recipe, data, script.device)
            self._reference, self.masks_mb = reference_of(plan, script.device), masks_mb(plan)
        rows: Tensor = data.splits["train"]
        self._train = in_batches(data, rows, batch_size, script.device)
        self._validation = in_batches(data, data.splits["validation"], batch_size, script.device)
        self._script, self._folder = script, Path(tempfile.mkdtemp(prefix=student, dir=script.scratch))
        self._courses: dict[str, Course] = {}

    def course(self, stage: str) -> Course:
        """A stage of the library's side; the first call fills its banks."""
        if stage not in self._courses:
            until = [config.name for config in self._recipe.stages].index(stage) + 1
            recipe = self._recipe.model_copy(update={"stages": self._recipe.stages[:until]})
            plan = prepare(recipe, self._data, self._script.device)
            self.masks_mb = masks_mb(plan)
            self._courses[stage] = Course(plan, job_of(plan, stage), self._script.device, self._folder / stage)
        return self._courses[stage]

    def library(self, stage: str) -> Work:
        """One epoch of a stage in the library."""
        return self.course(stage).epoch

    def reference(self, stage: str) -> Work:
        """One epoch of a stage in the reference implementation."""
        reference = self._reference
        assert reference is not None
        works: dict[str, Work] = {
            "collaborate": lambda: reference.collaborate_epoch(self._train),
            "specialise": lambda: reference.specialise_epoch(self._train, self._validation),
            "route": lambda: reference.route_epoch(self._train, self._validation),
        }
        return works[stage]

    def ratio(self, stage: str, rounds: int, *, warm: int = 1) -> Ratios:
        """The time of an epoch, library / reference, without filling the banks, whose time is printed."""
        course = self.course(stage)
        print(f"  {course.sources()}; filled in {course.bank_seconds:.1f} s", flush=True)
        return ratios(*self._script.alternate([self.library(stage), self.reference(stage)], rounds, warm=warm))

    def filling(self, stage: str) -> float:
        """Seconds of filling the banks, divided by the published number of epochs."""
        return self.course(stage).bank_seconds / PUBLISHED_EPOCHS

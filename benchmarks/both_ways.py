"""MST-Distill for one student in both ways: the library's stages on banks, and the reference's way beside them."""

from measure import Script, Work
from sizes import Course, av_mnist, in_batches, job_of, random_data, reference_of
from torch import Tensor

from crossdistill.plan import prepare

BATCH_ROWS = 64
PUBLISHED_EPOCHS = 100


class BothWays:
    """The same networks, masks and rows twice. Stages of one side share their networks, so each is made ready first."""

    def __init__(self, script: Script, student: str, train: int, validation: int, batch_size: int = BATCH_ROWS) -> None:
        data = random_data(train, validation)
        recipe = av_mnist(student, batch_size, train + validation, script.device)
        self.plan = prepare(recipe, data, script.device)
        self.reference = reference_of(self.plan, script.device)
        rows: Tensor = data.splits["train"]
        self._train = in_batches(data, rows, batch_size, script.device)
        self._validation = in_batches(data, data.splits["validation"], batch_size, script.device)
        self._script, self._folder = script, script.scratch / student
        self._courses: dict[str, Course] = {}

    def course(self, stage: str) -> Course:
        """A stage of the library's side; its banks are filled when it is first asked for."""
        if stage not in self._courses:
            job = job_of(self.plan, stage)
            self._courses[stage] = Course(self.plan, job, self._script.device, self._folder / stage)
        return self._courses[stage]

    def own(self, stage: str) -> Work:
        """One epoch of a stage, the library's way."""
        return self.course(stage).epoch

    def theirs(self, stage: str) -> Work:
        """One epoch of a stage, the reference's way."""
        reference = self.reference
        works: dict[str, Work] = {
            "collaborate": lambda: reference.collaborate_epoch(self._train),
            "specialise": lambda: reference.specialise_epoch(self._train, self._validation),
            "route": lambda: reference.route_epoch(self._train, self._validation),
        }
        return works[stage]

    def filling(self, stage: str) -> float:
        """Seconds that filling the banks takes for each of the published epochs."""
        return self.course(stage).bank_seconds / PUBLISHED_EPOCHS

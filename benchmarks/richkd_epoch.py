"""Cost of RichKD with banked teachers: time of an epoch of `richkd-l` and `richkd` / of the student alone, in 4 views.

The student is resnet8x4, and each training row has four banked views. Banked teachers cost the same whatever their
size, so they are linear maps of the pictures here, whose banks are filled fast. The memory has so many rows that the
16,384 negatives of a step exist. An epoch has a part of the steps, and ends with a validation of a few rows.
"""

import torch
from measure import Script, ratios
from sizes import Course, job_of
from torch import Tensor, nn

from crossdistill import Dataset, InputSpec, Network
from crossdistill.data.augmentation import Variation, Variations
from crossdistill.methods import RichKD, RichKDL, Supervised
from crossdistill.planning.plan import prepare
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.stage import OptimizerConfig, Stage

CLASSES, VIEWS, BATCH = 100, 4, 64
LIMITS = {"richkd-l": 1.10, "richkd": 1.25}


class Linear(nn.Module):
    """Logits and an embedding of `width` numbers from all pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(3 * 32 * 32, width), nn.Linear(width, CLASSES)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) and embedding (B, width)."""
        embedding = self.embedding(pictures.flatten(1))
        return {"logits": self.head(embedding), "embedding": embedding}


def data(train: int) -> Dataset:
    """Random pictures of the size of CIFAR's, in four views of flips and shifts."""
    rows = train + 2 * CLASSES
    parts = torch.arange(rows).split([train, CLASSES, CLASSES])
    return Dataset.from_arrays(
        "random",
        {"image": torch.rand(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        torch.arange(rows) % CLASSES,
        classes=[str(number) for number in range(CLASSES)],
        splits=dict(zip(("train", "validation", "test"), parts, strict=True)),
        input_specs={"image": InputSpec("image", (3, 32, 32))},
        augmentation=Variations(inputs={"image": Variation(shift=(4, 4))}, views=VIEWS),
    )


def main() -> None:
    """Measure both variants."""
    script = Script(__file__)
    torch.manual_seed(0)
    pictures, steps = data(17_000 if script.on_cpu else 50_000), 4 if script.on_cpu else 300
    teachers = {"cnn": Network(Linear(256), ["image"]), "clip": Network(Linear(768), ["image"])}
    courses = {}
    for method in (Supervised(), RichKDL(), RichKD()):
        alone = method.name == "supervised"
        stage = Stage(
            method=method,
            epochs=100,
            steps=steps,
            batch_size=BATCH,
            optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=5e-4),
            source="auto" if alone else "banked",
        )
        recipe = Recipe(
            data=pictures,
            student=NetworkConfig(model="cifar-resnet8x4"),
            student_name="student",
            teachers={} if alone else teachers,
            stages=(stage,),
            device=script.device.type,
        )
        plan = prepare(recipe, pictures, script.device)
        courses[method.name] = Course(plan, job_of(plan, stage.name), script.device, script.scratch / stage.name)
    seconds = script.alternate([course.epoch for course in courses.values()], 7)
    for (name, limit), own in zip(LIMITS.items(), seconds[1:], strict=True):
        script.ratio(f"{name} epoch, banked, {VIEWS} views / student alone, resnet8x4", ratios(own, seconds[0]), limit)
    for course in courses.values():
        course.close()


if __name__ == "__main__":
    main()

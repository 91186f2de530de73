"""Cost of banked distillation: time of an epoch of `route` and of `kd` / of `supervised`, for the same student.

A banked stage reads the teachers' logits by sample id, so their networks do not affect its time: here they are
untrained students, whose banks are filled fast. All three stages run the same loop, with validation. On CUDA the steps
of all of them are replayed as graphs.
"""

from collections.abc import Sequence

import torch
from measure import Script, ratios
from sizes import Course, job_of, random_data

from crossdistill.bank.bank import BankSettings
from crossdistill.methods import KD, Route, Supervised
from crossdistill.planning.plan import prepare
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.stage import OptimizerConfig, Stage

LIMIT = 1.10
TEACHERS = 4
EPOCHS = 100


def course(
    script: Script, model: str, modality: str, method: object, rows: Sequence[int], batch_size: int, teachers: int
) -> Course:
    """A stage of a student with banked teachers."""
    networks = {name: NetworkConfig(model=model) for name in ("student", *(f"teacher-{i}" for i in range(teachers)))}
    stage = Stage(
        method=method,
        epochs=EPOCHS,
        batch_size=batch_size,
        optimizer=OptimizerConfig(learning_rate=1e-4),
        source="banked" if teachers else "auto",
        cuda_graphs=script.device.type == "cuda",
    )
    recipe = Recipe(
        data=random_data(*rows, only=(modality,)),
        student=networks.pop("student"),
        student_name="student",
        teachers=networks,
        stages=(stage,),
        device=script.device.type,
        bank=BankSettings(),
    )
    plan = prepare(recipe, recipe.data, script.device)
    return Course(plan, job_of(plan, stage.name), script.device, script.scratch / model / stage.name)


def main() -> None:
    """Measure both stages for both students."""
    script = Script(__file__)
    torch.manual_seed(0)
    # Modality, rows for training and validation, batch size, rounds.
    sizes = {
        "lenet5": ("image", (4096, 1024), 512, 11) if script.on_cpu else ("image", (42_000, 14_000), 512, 15),
        "three-layer-cnn-a": ("audio", (128, 32), 64, 5) if script.on_cpu else ("audio", (8192, 2048), 512, 9),
    }
    for model, (modality, rows, batch_size, rounds) in sizes.items():
        alone = course(script, model, modality, Supervised(), rows, batch_size, 0)
        for name, method, teachers in (("route", Route(), TEACHERS), ("kd", KD(), 1)):
            banked = course(script, model, modality, method, rows, batch_size, teachers)
            measured = ratios(*script.alternate([banked.epoch, alone.epoch], rounds))
            script.ratio(f"{name} epoch, banked / student alone, {model}", measured, LIMIT)
            banked.close()
        alone.close()


if __name__ == "__main__":
    main()

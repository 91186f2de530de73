"""Networks that settings name in a recipe: added teachers join its stages, and a named student keeps its inputs."""

from crossdistill.backends.names import backend_of
from crossdistill.method import STUDENT
from crossdistill.methods.supervised import Supervised
from crossdistill.network import Network
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.stage import Stage


def with_names(before: Recipe, after: Recipe) -> Recipe:
    """The recipe `after` settings that named networks of other libraries.

    Teachers that `before` lacks join every stage that named all of its teachers. A network of another library also gets
    a supervised stage, after those of the other teachers, which trains what its `tune` says; a plan leaves out the
    stage of a frozen one. A named student reads what the student before read.
    """
    student = after.student
    if isinstance(student, NetworkConfig) and student != before.student and _is_other(student) and not student.reads:
        reads = before.student.reads if isinstance(before.student, Network) else before.student.modalities
        after = after.model_copy(update={"student": student.model_copy(update={"reads": tuple(reads)})})
    added = [name for name in after.teachers if name not in before.teachers]
    return _with_teachers(before, after, added) if added else after


def _is_other(network: object) -> bool:
    return isinstance(network, NetworkConfig) and backend_of(network.model) is not None


def _with_teachers(before: Recipe, after: Recipe, added: list[str]) -> Recipe:
    stages = [_with(stage, tuple(before.teachers), added) for stage in after.stages]
    by_name = [name for name in added if _is_other(after.teachers[name])]
    alike = [number for number, stage in enumerate(stages) if _trains_a_teacher(stage)]
    template = (
        stages[alike[-1]] if alike else next((one for one in stages if one.method.name != "supervised"), stages[0])
    )
    own = [_supervised(name, template) for name in by_name if f"supervised-{name}" not in {one.name for one in stages}]
    place = alike[-1] + 1 if alike else 0
    # The kind of the recipe's own teachers does not describe added ones.
    return Recipe.model_validate({**dict(after), "stages": (*stages[:place], *own, *stages[place:]), "kind": None})


def _with(stage: Stage, all_teachers: tuple[str, ...], added: list[str]) -> Stage:
    # A teacher that is the learner of a stage, such as a proxy, is not among the teachers of it.
    if not stage.teachers or set(stage.teachers) != set(all_teachers) - {stage.learner}:
        return stage
    return stage.model_copy(update={"teachers": (*stage.teachers, *added)})


def _trains_a_teacher(stage: Stage) -> bool:
    return stage.method.name == "supervised" and stage.learner != STUDENT


def _supervised(name: str, template: Stage) -> Stage:
    """A supervised stage with the lengths of another one."""
    return Stage(
        name=f"supervised-{name}",
        method=Supervised(),
        learner=name,
        teachers=(),
        epochs=template.epochs,
        steps=template.steps,
        batch_size=template.batch_size,
        optimizer=template.optimizer if template.method.name == "supervised" else type(template.optimizer)(),
    )

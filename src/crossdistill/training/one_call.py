"""`distill`: data and names of networks in, a trained student out; what is picked is said with its reason."""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from crossdistill.backends.names import with_file
from crossdistill.data.config import DataConfig
from crossdistill.data.dataset import Dataset
from crossdistill.errors import RecipeError, SettingError, nearest
from crossdistill.network import Network
from crossdistill.overrides import sentences
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.recipes import data_by_name
from crossdistill.recipes.own_data import AnyNetwork, check_labels, default_epochs, has_labels, setup_for
from crossdistill.recipes.own_files import loaded
from crossdistill.recipes.setup import ExperimentSetup
from crossdistill.recipes.stages import PLANS, recipe
from crossdistill.run_folder.folder import RECIPE, run_folder
from crossdistill.runtime.plain_yaml import read_yaml
from crossdistill.runtime.progress import Display, Terminal
from crossdistill.student import Student, load_student
from crossdistill.training.estimate import Forecast, StageForecast, forecast
from crossdistill.training.runner import run

Teachers = Sequence[str | AnyNetwork] | Mapping[str, str | AnyNetwork]

SPARE = 0.9
"""Fraction of `minutes` that training is planned for; reading, banks and the test take the rest."""


@dataclass(frozen=True, slots=True)
class Picked:
    """A recipe, and sentences that say what was picked for it and why."""

    recipe: Recipe
    reasons: tuple[str, ...]


def distill(
    data: str | Path | Dataset | DataConfig | ExperimentSetup,
    student: str | AnyNetwork | None = None,
    *,
    teachers: Teachers = (),
    method: str | None = None,
    out: Path | str | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    resume: bool = False,
    display: Display | None = None,
) -> Student:
    """Train a student, and return it; its run is the folder `out`, with `student/` and `results.json`.

    What is not given is picked from the data: the student's modality and network, the teachers, the method, the number
    of epochs. Every pick is said with its reason, before training, with the projected time.

    Args:
        data: a table (csv, tsv, jsonl, parquet), a folder (class folders, or without labels), `FILE.py:FUNCTION` that
            returns a `Dataset` or an `ExperimentSetup`, or one of these objects.
        student: a modality of the data, a network's name (`timm:NAME`, a name of `list_models()`, ...), or a network.
        teachers: names or networks, in a list or by name. By default the networks of all other modalities and one that
            reads every modality, or, for data of one modality, a larger network, all trained from the labels.
        method: a name of the table of methods.
        out: the run's folder (default: `runs/distill-NAME`).
        minutes: time for the training; epochs are picked to fit.
        epochs: of every stage (default: by the number of training rows).
        settings: `a.b=c` for the recipe, as `--set` on the command line.
        seed: of weights and order.
        resume: continue the run in `out`.
        display: where progress is shown; by default on standard error.

    Raises:
        SettingError: a name is unknown, or nothing can teach the student.
        RecipeError: faults of the recipe, all together.
        DataError: faults of the data.
        RunError: `out` holds a run and `resume` is False.
    """
    with nullcontext(display) if display is not None else Terminal() as display:
        picked = pick(data, student, teachers=teachers, method=method, epochs=epochs, settings=settings, seed=seed)
        made = picked.recipe
        for line in picked.reasons:
            display.say(line)
        folder = run_folder(out if out is not None else Path("runs") / f"distill-{_slug(made.name.partition('/')[0])}")
        if resume and (folder / RECIPE).is_file():
            # Its epochs were picked by the time of steps, which is never the same twice.
            made = made if minutes is None else with_epochs_of(made, folder)
        else:
            projected = forecast(made, display)
            if minutes is not None:
                made, projected, line = fitted_to(made, projected, minutes)
                display.say(line)
            display.say(projected.text().replace("; nothing is trained or written", ""))
        run(made, folder, resume=resume, display=display)
    return load_student(folder, made.student if isinstance(made.student, Network) else None)


def pick(
    data: str | Path | Dataset | DataConfig | ExperimentSetup,
    student: str | AnyNetwork | None = None,
    *,
    teachers: Teachers = (),
    method: str | None = None,
    epochs: int | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
) -> Picked:
    """The recipe of `distill`, with what was picked and why; see `distill`."""
    try:
        return _picked(data, student, teachers, method, epochs, settings, seed)
    except ValidationError as error:
        raise RecipeError("distill", sentences(error)) from error


def _picked(
    data: str | Path | Dataset | DataConfig | ExperimentSetup,
    student: str | AnyNetwork | None,
    teachers: Teachers,
    method: str | None,
    epochs: int | None,
    settings: Sequence[str],
    seed: int,
) -> Picked:
    source: DataConfig | Dataset | ExperimentSetup
    source, rest = data_by_name(str(data), settings) if isinstance(data, str | Path) else (data, list(settings))
    if isinstance(source, ExperimentSetup):
        if teachers:
            raise SettingError("the setup names its teachers itself: teachers= is for data without a setup")
        if student is not None and not isinstance(student, str):
            raise SettingError("the setup has the networks of its students; student= is one of its modalities")
        setup, dataset = source, source.data if isinstance(source.data, Dataset) else loaded(source.data)
        setup = setup if epochs is None else setup.with_epochs(epochs)
        modality = student or next(iter(setup.networks))
        if modality not in setup.networks:
            raise SettingError(f"student={modality}: {nearest(modality, setup.networks)}")
    else:
        if isinstance(source, DataConfig) and source.label_seed is None:
            source = source.model_copy(update={"label_seed": seed})
        dataset, labelled = (source, 1.0) if isinstance(source, Dataset) else (loaded(source), source.labelled)
        check_labels(dataset, named(teachers))
        setup = setup_for(source, dataset, student=student, teachers=named(teachers), epochs=epochs, labelled=labelled)
        modality = next(iter(setup.networks))
    reasons = [f"data: {len(dataset):,} rows, {', '.join(dataset.inputs)}, {len(dataset.classes)} classes"]
    reasons.append(f"student: {modality!r}, {_title(setup.networks[modality])}" + (" (picked)" if not student else ""))
    chosen, why = (method, "as given") if method else picked_method(setup, dataset)
    if chosen not in PLANS:
        raise SettingError(f"no method is called {chosen!r}; see `crossdistill list methods`")
    made = recipe(setup, chosen, student=modality, teachers=None, seed=seed, control=None)
    taught = ", ".join(f"{name} ({_title(network)})" for name, network in made.teachers.items())
    reasons.append(f"teachers: {taught or 'none'}" + ("" if teachers else " (picked)"))
    reasons.append(f"method: {chosen}, {why}")
    if epochs is None and not isinstance(source, ExperimentSetup):
        rows = len(dataset.splits["train"])
        reasons.append(
            f"epochs: {default_epochs(rows)} of each stage, by the {rows:,} training rows; --epochs sets them"
        )
    return Picked(made.overridden(rest), tuple(reasons))


def picked_method(setup: ExperimentSetup, dataset: Dataset) -> tuple[str, str]:
    """The method for a setup and its data, with the reason."""
    if not has_labels(dataset):
        return "translate", "since the data have no labels: the student learns the teachers' features"
    if setup.multimodal is not None and "mm+cm" in setup.kinds:
        return "mst-distill", "since the data have several modalities, whose networks teach the student by routing"
    if len(setup.named_teachers) > 1:
        return "average-kd", "since there are several teachers: the mean of their predictions"
    return "kd", "from the teacher's predictions"


def with_epochs_of(made: Recipe, folder: Path) -> Recipe:
    """The recipe with the epochs that the run in a folder has."""
    stages = read_yaml(folder / RECIPE).get("stages", [])
    epochs = {stage.get("name"): stage.get("epochs") for stage in stages if isinstance(stage, dict)}
    return made.overridden(
        [f"stages.{stage.name}.epochs={epochs[stage.name]}" for stage in made.stages if stage.name in epochs]
    )


def fitted_to(made: Recipe, projected: Forecast, minutes: float) -> tuple[Recipe, Forecast, str]:
    """The recipe with fewer epochs, so that its projected time fits; that projection, and a sentence about it."""
    wanted = SPARE * 60 * minutes
    if projected.seconds <= wanted:
        return made, projected, f"the projected {projected.seconds / 60:.1f} minutes fit into {minutes:g}"
    share = wanted / projected.seconds
    stages = tuple(
        stage.model_copy(update={"epochs": max(min(stage.epochs, 1), int(share * stage.epochs))})
        for stage in made.stages
    )
    epochs = {stage.name: stage.epochs for stage in stages}
    # A plan leaves out stages in which nothing trains.
    shorter = replace(projected, stages=tuple(_of_epochs(stage, epochs[stage.name]) for stage in projected.stages))
    listed = ", ".join(f"{name} {number}" for name, number in epochs.items())
    line = f"all epochs would take {projected.seconds / 60:.1f} minutes; "
    if shorter.seconds > wanted:
        line += f"one of each stage takes {shorter.seconds / 60:.1f}, which is more than {minutes:g}"
    else:
        line += f"to fit into {minutes:g}: {listed} epochs"
    return made.model_copy(update={"stages": stages}), shorter, line


def _of_epochs(stage: StageForecast, epochs: int) -> StageForecast:
    share = epochs / max(1, stage.epochs)
    return replace(stage, epochs=epochs, steps=round(share * stage.steps), seconds=share * stage.seconds)


def named(teachers: Teachers) -> dict[str, str | AnyNetwork]:
    """Teachers by name: of a list, the last part of each network's name, numbered where two are alike."""
    if isinstance(teachers, Mapping):
        return dict(teachers)
    if isinstance(teachers, str):
        teachers = [teachers]
    by_name: dict[str, str | AnyNetwork] = {}
    for teacher in teachers:
        text = with_file(teacher)[0] if isinstance(teacher, str) else _title(teacher)
        name = _slug(re.split(r"[:/\\]", text.rstrip("/\\"))[-1]) or "teacher"
        by_name[name if name not in by_name else f"{name}-{len(by_name) + 1}"] = teacher
    return by_name


def _title(network: AnyNetwork) -> str:
    if isinstance(network, NetworkConfig):
        return network.model
    return network.name if isinstance(network, Network) else type(network).__name__


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")

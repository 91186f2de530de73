"""Probes of frozen networks: all checks first, then features, heads and scores of every network on every task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from crossdistill.errors import DataError, SettingError, nearest
from crossdistill.probes.clips import ProbeData
from crossdistill.probes.ctc import fit_speech
from crossdistill.probes.features import frame_features, pooled_features
from crossdistill.probes.frozen import Frozen, open_frozen
from crossdistill.probes.heads import HeadKind, fit_heads, slot_classes, slot_loss, square_loss
from crossdistill.probes.metrics import KEYS, class_score, r2, word_error_rate
from crossdistill.probes.report import ProbeReport, ProbeScore
from crossdistill.probes.shots import subsets
from crossdistill.probes.tasks import ProbeTask, find_task
from crossdistill.runtime.distributed import kinds
from crossdistill.runtime.progress import Display, Quiet

SUBSETS = "subsets"
Layers = Literal["last", "sum"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The protocol: layers, head, seeds, and numbers of clips a class besides all of them."""

    layers: Layers = "last"
    head: HeadKind = "linear"
    seeds: int = 5
    shots: tuple[int, ...] = ()
    device: str = "auto"

    def check(self) -> None:
        """Check the values.

        Raises:
            SettingError: one is unknown or out of range.
        """
        for name, value, known in (("layers", self.layers, ("last", "sum")), ("head", self.head, ("linear", "mlp"))):
            if value not in known:
                raise SettingError(f"probe: {name}: no choice is called {value!r}; {nearest(value, known)}")
        if self.seeds < 1 or any(number < 1 for number in self.shots):
            raise SettingError(f"probe: seeds and shots are 1 at least; found {self.seeds} and {list(self.shots)}")
        if self.device.partition(":")[0] not in ("auto", *kinds()):
            raise SettingError(
                f"probe: device: {self.device!r} is not here; {nearest(self.device, ['auto', *kinds()])}"
            )

    def place(self) -> torch.device:
        """The device that features and heads are computed on."""
        wanted = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(wanted)


def probe(
    networks: Sequence[str | Frozen],
    tasks: Sequence[tuple[str, Path]],
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    display: Display | None = None,
) -> ProbeReport:
    """Scores of frozen networks on tasks, each a name of `tasks.TASKS` and the folder (or table) of its data.

    Everything is checked before features are computed. Features are kept in the cache folder. With `out`, subsets of
    few shots are read from `out/subsets`, or drawn and stored there, and the report is written there. The test split
    is read once for each head, after the validation has chosen its learning rate and its epoch.

    Raises:
        SettingError: no such task, network or setting, two networks of one name, or one that reads no sound.
        DataError: data in another layout, stored subsets that do not fit, or a recording that cannot be read.
    """
    settings = settings or Settings()
    settings.check()
    if not networks or not tasks:
        raise SettingError("probe: wanted at least one network and one task")
    shown = display or Quiet()
    readable = [(task, _readable(task, where, settings)) for task, where in _named(tasks)]
    opened = _opened(networks, settings)
    folder = None if out is None else out / SUBSETS
    amounts = [None, *settings.shots]
    rows = [{shots: _training(data, task, shots, settings, folder) for shots in amounts} for task, data in readable]
    scores: list[ProbeScore] = []
    for (task, data), chosen in zip(readable, rows, strict=True):
        for frozen in opened:
            scores += _scores(frozen, task, data, chosen, settings, shown)
    remarks = [f"{task.name}: {data.remark}" for task, data in readable if data.remark]
    remarks += [line for task, data in readable for line in _few_remarks(task, data, settings.shots)]
    report = ProbeReport(tuple(scores), settings.head, settings.layers, settings.seeds, tuple(remarks))
    if out is not None:
        report.save(out)
    return report


def _named(tasks: Sequence[tuple[str, Path]]) -> list[tuple[ProbeTask, Path]]:
    """The tasks with their data; a task of several data is named after them too, by as many folders as needed.

    Raises:
        SettingError: there is no such task, or two of them have one name in the report.
    """
    unique = list({(name, where.expanduser().absolute()): (find_task(name), where) for name, where in tasks}.items())
    counts = Counter(name for (name, _), _ in unique)
    deepest = max(len(path.parts) for (_, path), _ in unique)
    for depth, whole in product(range(1, deepest + 1), (False, True)):
        names = [
            "-".join((name, *_last_parts(path, depth, whole))) if counts[name] > 1 else name
            for (name, path), _ in unique
        ]
        if len(set(names)) == len(names):
            return [(replace(task, name=name), where) for name, (_, (task, where)) in zip(names, unique, strict=True)]
    raise SettingError(f"probe: two tasks are called {Counter(names).most_common(1)[0][0]!r}; rename a file of data")


def _last_parts(path: Path, depth: int, whole: bool) -> tuple[str, ...]:
    """The last folders of a path, and its last name with or without the suffix; `depth` names together."""
    return (*path.parts[1:-1], path.name if whole else path.stem)[-depth:]


def _opened(networks: Sequence[str | Frozen], settings: Settings) -> list[Frozen]:
    """The networks with the layers that are read.

    Raises:
        SettingError: two of them have one name, under which the report would show the last one alone.
    """
    opened = [open_frozen(network) if isinstance(network, str) else network for network in dict.fromkeys(networks)]
    name, count = Counter(frozen.name for frozen in opened).most_common(1)[0]
    if count > 1:
        raise SettingError(f"probe: {count} networks are called {name!r}; give each a name of its own")
    return [_layered(frozen, settings) for frozen in opened]


def _readable(task: ProbeTask, where: Path, settings: Settings) -> ProbeData:
    data = task.read(where)
    if settings.shots and task.kind != "classes":
        raise SettingError(
            f"task {task.name!r} has no classes, so that no number of shots a class exists; leave out --shots"
        )
    if task.kind == "classes":
        _check_classes(task, data, where)
    if task.kind == "numbers":
        for fold in data.folds:
            for part, rows in (("training", fold.train), ("test", fold.test)):
                for column in zip(*(data.clips[row].numbers for row in rows), strict=True):
                    if len(set(column)) < 2:
                        raise DataError(
                            f"{where}: task {task.name!r}: all {len(rows):,} targets of the {part} are {column[0]:g}, "
                            "so that R² is undefined; wanted two numbers or more"
                        )
    return data


def _check_classes(task: ProbeTask, data: ProbeData, where: Path) -> None:
    """Check that there is something to tell apart: of one class, every network would have an accuracy of 100 %.

    Raises:
        DataError: all clips that train a fold are of one class.
    """
    for fold in data.folds:
        for place, slot in enumerate(data.slots):
            found = {data.clips[row].labels[place] for row in fold.train}
            if len(found) < 2:
                raise DataError(
                    f"{where}: task {task.name!r}: all {len(fold.train):,} clips of the training are of one class, "
                    f"{slot}={next(iter(found), '')!r}; wanted two classes or more"
                )


def _few_remarks(task: ProbeTask, data: ProbeData, shots: Sequence[int]) -> list[str]:
    """A sentence for each number of shots that classes do not have: their scores are nearer those of all clips."""
    if task.kind != "classes":
        return []
    held = [sorted(Counter(data.clips[row].labels for row in fold.train).values()) for fold in data.folds]
    most, said = max(sizes[-1] for sizes in held), []
    for number in shots:
        few = max(sum(size < number for size in sizes) for sizes in held)
        if number >= most:
            said.append(f"{number} shots a class are all training clips: no class has more than {most:,}")
        elif few:
            said.append(f"{number} shots a class: {few} of {len(held[0])} classes have fewer clips and give all")
    return [f"{task.name}: {text}" for text in said]


def _layered(frozen: Frozen, settings: Settings) -> Frozen:
    """The network with the layers that are read: the last one, or all."""
    if settings.layers == "sum" and len(frozen.layers) < 2:
        raise SettingError(f"{frozen.name} has {len(frozen.layers)} layers, which have no sum; probe --layers last")
    return frozen if settings.layers == "sum" else replace(frozen, layers=frozen.layers[-1:])


def _training(
    data: ProbeData, task: ProbeTask, shots: int | None, settings: Settings, folder: Path | None
) -> list[list[tuple[int, ...]]]:
    """The training rows of each fold and seed."""
    seeds = range(settings.seeds)
    if shots is None:
        return [[fold.train] * settings.seeds for fold in data.folds]
    return [subsets(data, task.name, number, shots, seeds, folder) for number in range(len(data.folds))]


Chosen = dict[int | None, list[list[tuple[int, ...]]]]


def _scores(
    frozen: Frozen, task: ProbeTask, data: ProbeData, chosen: Chosen, settings: Settings, display: Display
) -> list[ProbeScore]:
    """The scores of a network on a task, for all training clips and for each number of shots."""
    device = settings.place()
    if task.kind == "text":
        return [_speech(frozen, task, data, settings, display)]
    features = pooled_features(frozen, data.clips, device, display)
    score = _numbers if task.kind == "numbers" else _classes
    return [score(frozen.name, task, data, shots, rows, features, settings) for shots, rows in chosen.items()]


def _classes(
    model: str,
    task: ProbeTask,
    data: ProbeData,
    shots: int | None,
    training: list[list[tuple[int, ...]]],
    features: Tensor,
    settings: Settings,
) -> ProbeScore:
    names = (KEYS,) if task.metric == "key-score" else data.classes()
    targets = torch.tensor([[names[i].index(label) for i, label in enumerate(clip.labels)] for clip in data.clips])
    sizes = [len(classes) for classes in names]
    read, measure = slot_classes(sizes), class_score(task.metric)

    def score(outputs: Tensor, wanted: Tensor) -> float:
        return measure(read(outputs), wanted)

    values: list[list[float]] = []
    floors: list[float] = []
    rates: list[float] = []
    layers: list[Tensor] = []
    for fold, rows in zip(data.folds, training, strict=True):
        seeds = range(settings.seeds)
        fitted = fit_heads(
            settings.head, features, targets, rows, fold.validation, sum(sizes), slot_loss(sizes), score,
            seeds=seeds, device=settings.place(),
        )  # fmt: skip
        tested = targets[list(fold.test)]
        values.append([score(outputs, tested) for outputs in fitted.outputs(features[list(fold.test)])])
        usual = Counter(data.clips[row].labels for row in fold.train).most_common(1)[0][0]
        constant = torch.tensor([[names[i].index(label) for i, label in enumerate(usual)]]).expand(len(tested), -1)
        floors.append(measure(constant, tested))
        rates += fitted.rates
        layers.append(fitted.layers.mean(0))
    return _score(model, task, data, shots, training, values, floors, rates, layers)


def _numbers(
    model: str,
    task: ProbeTask,
    data: ProbeData,
    shots: int | None,
    training: list[list[tuple[int, ...]]],
    features: Tensor,
    settings: Settings,
) -> ProbeScore:
    numbers = torch.tensor([clip.numbers for clip in data.clips])
    values: list[list[float]] = []
    rates: list[float] = []
    layers: list[Tensor] = []
    for fold, rows in zip(data.folds, training, strict=True):
        known = numbers[list(fold.train)]
        # Learned in units of the training's deviation; R² does not depend on the unit.
        targets = (numbers - known.mean(0)) / known.std(0, correction=0).clamp(min=1e-9)
        fitted = fit_heads(
            settings.head, features, targets, rows, fold.validation, numbers.shape[1], square_loss, _mean_r2,
            seeds=range(settings.seeds), device=settings.place(),
        )  # fmt: skip
        tested = targets[list(fold.test)]
        values.append([_mean_r2(outputs, tested) for outputs in fitted.outputs(features[list(fold.test)])])
        rates += fitted.rates
        layers.append(fitted.layers.mean(0))
    return _score(model, task, data, shots, training, values, [0.0], rates, layers)


def _mean_r2(outputs: Tensor, wanted: Tensor) -> float:
    return sum(r2(outputs, wanted)) / wanted.shape[1]


def _speech(frozen: Frozen, task: ProbeTask, data: ProbeData, settings: Settings, display: Display) -> ProbeScore:
    frames = frame_features(frozen, data.clips, settings.place(), display)
    texts = [clip.labels[0] for clip in data.clips]
    values: list[list[float]] = []
    rates: list[float] = []
    layers: list[Tensor] = []
    for fold in data.folds:
        if not any(texts[row].split() for row in fold.test):
            raise DataError(f"task {task.name!r}: the texts of the test have no word")
        fitted = fit_speech(
            settings.head,
            frames,
            texts,
            fold.train,
            fold.validation,
            seeds=range(settings.seeds),
            device=settings.place(),
        )
        spoken, tested = [texts[row] for row in fold.test], [frames[row] for row in fold.test]
        values.append([word_error_rate(read, spoken) for read in fitted.texts(tested)])
        rates += fitted.rates
        layers.append(torch.stack([head.layers.detach().softmax(0).cpu() for head in fitted.heads]).mean(0))
    training = _training(data, task, None, settings, None)
    return _score(frozen.name, task, data, None, training, values, [1.0], rates, layers)


def _score(
    model: str,
    task: ProbeTask,
    data: ProbeData,
    shots: int | None,
    training: list[list[tuple[int, ...]]],
    values: list[list[float]],
    floors: list[float],
    rates: list[float],
    layers: list[Tensor],
) -> ProbeScore:
    """The score of each seed as the mean over folds."""
    means = tuple(sum(seed) / len(seed) for seed in zip(*values, strict=True))
    return ProbeScore(
        task.name,
        model,
        shots,
        task.metric,
        means,
        sum(floors) / len(floors),
        max(len(rows[0]) for rows in training),
        sum(len(fold.test) for fold in data.folds),
        tuple(torch.stack(layers).mean(0).tolist()) if len(layers[0]) > 1 else (),
        tuple(rates),
    )

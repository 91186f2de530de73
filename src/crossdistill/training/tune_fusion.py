"""Settings of a fused teacher, chosen on the validation split from stored logits, without training."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossdistill.bank.fused import Fusion
from crossdistill.data.dataset import Dataset
from crossdistill.errors import DataError, RunError, SettingError
from crossdistill.losses.cross_entropy import cross_entropy
from crossdistill.methods.richkd import RichKDConfig
from crossdistill.planning.attach_banks import attach_banks
from crossdistill.planning.plan import Job, prepare
from crossdistill.planning.sources import load_choices
from crossdistill.recipe import Recipe
from crossdistill.run_folder.checkpoint import load_outcome
from crossdistill.run_folder.folder import RECIPE, run_folders
from crossdistill.run_folder.initial_weights import with_initial_weights
from crossdistill.runtime.distributed import devices
from crossdistill.runtime.progress import Display, Quiet
from crossdistill.training.fusion import PartLogits, measured, part_logits

ALPHAS = tuple(number / 10 for number in range(11))
"""First candidates of the main teacher's coefficient; the neighbours of the best one follow."""
STEP = 0.05
FEWEST = 20
"""Least number of validation rows."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fused teacher on the validation rows: accuracy, NLL in nats, and ECE, at temperature 1."""

    alpha: float
    per_sample: bool
    temperatures: Mapping[str, float]
    """By part: that of the lowest NLL of the part alone, times that of the lowest NLL of the fused prediction."""
    accuracy: float
    nll: float
    ece: float


@dataclass(frozen=True, slots=True)
class FusionChoice:
    """The settings with the lowest NLL on the validation rows, and the candidates."""

    stage: str
    rows: int
    main: str
    parts: Mapping[str, tuple[float, float, float]]
    """By part: accuracy, NLL and ECE at its temperature."""
    calibrated: Mapping[str, float]
    """By part: its temperature of the lowest NLL."""
    candidates: tuple[Candidate, ...]
    best: Candidate
    held_out: tuple[float, float]
    """NLL and accuracy of settings that were chosen on one half of the rows and measured on the other, both ways."""
    weight_logits: float
    """Weight at which the fused term's gradient at the start has the size that the present one has with the main
    teacher alone and its logits as they are."""

    def settings(self) -> list[str]:
        """The settings as a command line takes them."""
        where = f"stages.{self.stage}.method"
        temperatures = [f"{where}.temperatures.{name}={value:.4g}" for name, value in self.best.temperatures.items()]
        switch = [f"{where}.per_sample=true"] if self.best.per_sample else []
        weight = f"{where}.weight_logits={self.weight_logits:.3g}"
        return [f"{where}.alpha={self.best.alpha:g}", *temperatures, *switch, weight]

    def command_line(self) -> str:
        """The `--set` options to use."""
        return " ".join(f"--set {text}" for text in self.settings())

    def as_data(self) -> dict[str, Any]:
        """All values as plain JSON values."""
        return {**asdict(self), "settings": self.settings()}

    def text(self) -> str:
        """The table of candidates, and the line of settings."""
        head = f"{'teacher':<24}{'accuracy':>10}{'NLL':>9}{'ECE':>9}"
        lines = [f"{self.stage}: {self.rows:,} validation rows; no row of the test split is read", head]
        for name, values in self.parts.items():
            lines.append(_line(f"{name}, temperature {self.calibrated[name]:.3g}", *values))
        for one in self.candidates:
            kind = ", by sample" if one.per_sample else ""
            mark = "  <- chosen" if one == self.best else ""
            lines.append(_line(f"alpha {one.alpha:.2f}{kind}", one.accuracy, one.nll, one.ece) + mark)
        common = ", ".join(f"{name} {value:.3g}" for name, value in self.best.temperatures.items())
        lines.append(f"temperatures of the fused logits, times one factor that minimises their NLL: {common}")
        nll, accuracy = self.held_out
        lines.append(f"chosen on one half, measured on the other: accuracy {accuracy:.4f}, NLL {nll:.4f}")
        if self.best.alpha == 1:
            lines.append(f"no other part improves on {self.main!r} here; with alpha 1 it teaches alone")
        return "\n".join([*lines, "", self.command_line()])


def _line(name: str, accuracy: float, nll: float, ece: float) -> str:
    return f"{name:<24}{accuracy:>10.4f}{nll:>9.4f}{ece:>9.4f}"


def tune_fusion(
    recipe: Recipe,
    out: Path | str,
    *,
    share: Path | str | None = None,
    banks: Path | str | None = None,
    dataset: Dataset | None = None,
    display: Display | None = None,
) -> FusionChoice:
    """Choose α, the temperature of each part, coefficients by sample or constant, and the weight of the fused term.

    The teachers' weights are final: those of earlier stages are read from the run's folder `out` or from `share`. What
    their banks lack is computed; a second call reads them alone.

    Raises:
        RecipeError: the recipe has faults.
        SettingError: no stage fuses logits.
        RunError: a teacher is not trained yet; says how.
        DataError: too few validation rows have a class.
    """
    out, share, banks = run_folders(out, share, banks)
    display = display or Quiet()
    with devices(recipe.device) as placed:
        if dataset is None:
            dataset = recipe.data if isinstance(recipe.data, Dataset) else recipe.data.load(display.data)
        weighted = (
            with_initial_weights(recipe, dataset, out, placed, display.say) if (out / RECIPE).is_file() else recipe
        )
        plan = prepare(weighted, dataset, placed.device, load_choices(out), placed.ranks)
        if not any(_fuses(job) for job in plan.jobs):
            names = ", ".join(job.stage.method.name for job in plan.jobs)
            raise SettingError(f"{recipe.name}: no stage fuses logits (its methods: {names}); take richkd-l or richkd")
        for job in plan.jobs:
            if _fuses(job):
                supplied, _ = attach_banks(job, recipe.bank, banks, placed, display)
                parts = part_logits(supplied, placed.device)
                if parts is None or len(parts.targets) < FEWEST:
                    rows = 0 if parts is None else len(parts.targets)
                    raise DataError(f"{recipe.name}: {rows} validation rows have a class; at least {FEWEST} are needed")
                assert isinstance(job.stage.method, RichKDConfig)
                return choose(parts, job.stage.method, job.stage.name)
            modules = job.modules()
            done = load_outcome(out / "stages" / job.folder, modules, job.key)
            if done is None and share is not None and not job.unkeyed:
                done = load_outcome(share / job.key, modules, job.key)
            if done is None:
                raise RunError(
                    f"tune-fusion trains nothing, and {job.stage.name} is not trained in {out}: name a trained teacher "
                    "(--set teachers.cnn=RUN), or the folder of a run that has begun its last stage"
                )
    raise AssertionError("a stage fuses logits")


def _fuses(job: Job) -> bool:
    return isinstance(job.stage.method, RichKDConfig) and bool(job.stage.method.weight_logits)


def choose(parts: PartLogits, method: RichKDConfig, stage: str) -> FusionChoice:
    """The settings with the lowest NLL.

    Each part's temperature minimises its own NLL first (Guo et al., 2017). The sum of calibrated logits is unsure where
    parts bring evidence of their own, so a common temperature then minimises the NLL of the fused prediction.
    """
    main = next(iter(method.fusion(tuple(parts.logits)).coefficients))
    calibrated, candidates, best = _best(parts, method, slice(None))
    halves = (slice(0, None, 2), slice(1, None, 2))
    held, right, rows = 0.0, 0.0, 0
    for one, other in (halves, halves[::-1]):
        chosen = _best(parts, method, one)[2]
        logits, targets = parts.fused(
            _fusion(parts, method, chosen.alpha, chosen.temperatures, chosen.per_sample), other
        )
        held += float(cross_entropy(logits, targets).sum())
        right += float((logits.argmax(1) == targets).sum())
        rows += len(targets)
    each = {}
    for name in parts.logits:
        logits, targets = parts.of(name)
        own = measured(logits / calibrated[name], targets)
        each[name] = (own.accuracy, own.nll, own.ece)
    before = _gradient(parts.of(main)[0], method.temperature)
    fusion = _fusion(parts, method, best.alpha, best.temperatures, best.per_sample)
    after = _gradient(parts.fused(fusion)[0], method.temperature)
    return FusionChoice(
        stage=stage,
        rows=len(parts.targets),
        main=main,
        parts=each,
        calibrated=calibrated,
        candidates=candidates,
        best=best,
        held_out=(held / rows, right / rows),
        weight_logits=method.weight_logits * (before / after if after else 1.0),
    )


def _best(
    parts: PartLogits, method: RichKDConfig, rows: slice
) -> tuple[dict[str, float], tuple[Candidate, ...], Candidate]:
    """The temperatures of the parts alone, all candidates in order, and the one of the lowest NLL."""
    calibrated = {}
    for name, logits in parts.logits.items():
        there = parts.seen[name][rows]
        calibrated[name] = fitted_temperature(logits[rows][there], parts.targets[rows][there])
    found: dict[tuple[bool, float], Candidate] = {}
    for per_sample in (False, True):
        for alpha in ALPHAS:
            found[per_sample, alpha] = _candidate(parts, method, alpha, calibrated, per_sample, rows)
        best = min((one for one in found.values() if one.per_sample == per_sample), key=lambda one: one.nll)
        for alpha in (best.alpha - STEP, best.alpha + STEP):
            if 0 < alpha < 1:
                found[per_sample, round(alpha, 2)] = _candidate(
                    parts, method, round(alpha, 2), calibrated, per_sample, rows
                )
    return calibrated, tuple(found[key] for key in sorted(found)), min(found.values(), key=lambda one: one.nll)


def _candidate(
    parts: PartLogits,
    method: RichKDConfig,
    alpha: float,
    calibrated: Mapping[str, float],
    per_sample: bool,
    rows: slice,
) -> Candidate:
    common = fitted_temperature(*parts.fused(_fusion(parts, method, alpha, calibrated, per_sample), rows))
    temperatures = {name: value * common for name, value in calibrated.items()}
    own = measured(*parts.fused(_fusion(parts, method, alpha, temperatures, per_sample), rows))
    return Candidate(alpha, per_sample, temperatures, own.accuracy, own.nll, own.ece)


def _fusion(
    parts: PartLogits, method: RichKDConfig, alpha: float, temperatures: Mapping[str, float], per_sample: bool
) -> Fusion:
    plain = method.model_copy(update={"alpha": alpha, "coefficients": {}})
    return replace(plain.fusion(tuple(parts.logits)), temperatures=dict(temperatures), per_sample=per_sample)


def fitted_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature of the lowest NLL on these rows, by Newton's method: the NLL is convex in 1 / temperature.

    One part in (rows + 1) of each target is uniform, so that a part without a mistake has a finite temperature. 1.0
    without rows, or where no temperature makes the logits better than a uniform prediction.
    """
    if not len(targets):
        return 1.0
    uniform = 1 / (len(targets) + 1)
    own, mean = logits.gather(1, targets.unsqueeze(1)).mean(), logits.mean()
    wanted = float((1 - uniform) * own + uniform * mean)
    spread = float(logits.std(1).mean())
    if spread == 0 or wanted <= float(mean) + 1e-9 * spread:
        return 1.0
    low, high, inverse = 0.0, math.inf, 1 / spread
    for _ in range(30):
        soft = (inverse * logits).softmax(1)
        first = (soft * logits).sum(1)
        slope = float(first.mean()) - wanted
        curve = float(((soft * logits.square()).sum(1) - first.square()).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        following = inverse - slope / curve if curve > 0 else math.inf
        if not low < following < high:
            following = (low + high) / 2 if high < math.inf else 2 * inverse
        if abs(following - inverse) <= 1e-5 * inverse:
            break
        inverse = following
    return 1 / inverse


def _gradient(logits: Tensor, temperature: float) -> float:
    """The mean size of the gradient of T² · KL on a student with equal logits: T · ‖softmax(z / T) - 1 / C‖."""
    soft = (logits / temperature).softmax(1)
    return temperature * float((soft - 1 / logits.shape[1]).norm(dim=1).mean())

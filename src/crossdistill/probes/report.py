"""The report of probes: tasks × networks with their spread over seeds, and two scores over all tasks."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossdistill.probes.metrics import LOWER_IS_BETTER
from crossdistill.report import spread_of
from crossdistill.runtime.escaping import markdown, visible
from crossdistill.runtime.files import write_json, write_text

REPORT, PAGE = "report.json", "report.md"


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """The score of one network on one task; `shots` is None where all training clips were used.

    `values` has the mean over folds of each seed. `floor` is the score of a constant: the most frequent class of
    the training, 0 for R², 1 for the word error rate. `layers` are the mean weights of a learned sum of layers, and
    `rates` the learning rates that the validation chose, by fold and seed.
    """

    task: str
    model: str
    shots: int | None
    metric: str
    values: tuple[float, ...]
    floor: float
    train_clips: int
    test_clips: int
    layers: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (ddof 1); None of one seed."""
        return spread_of(self.values)

    @property
    def goodness(self) -> float:
        """The mean as a number that rises: 1 - score where lower is better."""
        return 1 - self.mean if self.metric in LOWER_IS_BETTER else self.mean

    def text(self) -> str:
        """Mean ± spread in percent; of R² as it is."""
        factor, digits = (1, 3) if self.metric == "r2" else (100, 1)
        spread = "" if self.spread is None else f" ± {factor * self.spread:.{digits}f}"
        return f"{factor * self.mean:.{digits}f}{spread}"


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Scores of networks on tasks under one protocol."""

    scores: tuple[ProbeScore, ...]
    head: str
    layers: str
    seeds: int
    remarks: tuple[str, ...] = ()

    @property
    def models(self) -> list[str]:
        """Names of the networks, in their order."""
        return list(dict.fromkeys(score.model for score in self.scores))

    def superb(self, model: str, shots: int | None = None) -> float:
        """A score from 0 to 1000 in the manner of SUPERB-SG (Tsai et al., ACL 2022).

        1000 times the mean over tasks of (score - floor) / (best - floor). There, floor and best are log-mel features
        and the published best network; here, they are the score of a constant and the best network of this report,
        so that scores of two reports do not compare. A task on which no network beats the floor is left out. NaN of
        one network alone, which would always have 1000, and where no network beats a floor.
        """
        if len(self.models) < 2:
            return math.nan
        shares = []
        for score in self._of(model, shots):
            low = 1 - score.floor if score.metric in LOWER_IS_BETTER else score.floor
            best = max(other.goodness for other in self.scores if (other.task, other.shots) == (score.task, shots))
            if best > low:
                shares.append((score.goodness - low) / (best - low))
        return 1000 * sum(shares) / len(shares) if shares else math.nan

    def marble(self, model: str, shots: int | None = None) -> float:
        """The mean over tasks of the metrics in percent, as the averages of MARBLE (Yuan et al., NeurIPS 2023).

        The word error rate counts as 100 - WER, R² as 100 · R².
        """
        values = [100 * score.goodness for score in self._of(model, shots)]
        return sum(values) / len(values) if values else math.nan

    def _of(self, model: str, shots: int | None) -> list[ProbeScore]:
        return [score for score in self.scores if (score.model, score.shots) == (model, shots)]

    def lines(self) -> list[list[str]]:
        """The table: a line of names, one for each task and number of shots, and the two scores."""
        names = _short(self.models)
        rows = [["task", "clips", "metric", *names]]
        cells = {(score.task, score.shots, score.model): score for score in self.scores}
        for task, shots in dict.fromkeys((score.task, score.shots) for score in self.scores):
            scores = [cells[task, shots, model] for model in self.models]
            # A class of fewer clips gives all of them, so that the number of clips says more than that of shots.
            clips = f"{scores[0].train_clips:,}"
            how = clips if shots is None else f"{shots} a class: {clips}"
            rows.append([task, how, scores[0].metric, *(score.text() for score in scores)])
        for shots in dict.fromkeys(score.shots for score in self.scores):
            how = "all" if shots is None else f"{shots} a class"
            shares = [self.superb(model, shots) for model in self.models]
            if not all(map(math.isnan, shares)):
                rows.append(["SUPERB-style", how, "of 1000", *(f"{share:.0f}" for share in shares)])
            rows.append(
                ["MARBLE-style", how, "mean, %", *(f"{self.marble(model, shots):.1f}" for model in self.models)]
            )
        return rows

    def about(self) -> str:
        """The protocol in a sentence."""
        layers = "a learned sum of the layers" if self.layers == "sum" else "the last layer"
        return (
            f"Frozen networks, {layers}, head {self.head}, {self.seeds} seeds (mean ± standard deviation), learning "
            "rate chosen on the validation; accuracy, key-score and wer in percent."
            f"{'' if len(self.models) > 1 else ' A SUPERB-style score compares two networks or more.'}"
        )

    def markdown(self) -> str:
        """The report as a page."""
        head, *rows = self.lines()
        lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in (head, *rows)]
        lines.insert(1, "|---|---|---|" + "--:|" * len(self.models))
        remarks = "".join(f"\n- {markdown(remark)}" for remark in self.remarks)
        return f"# Probes\n\n{self.about()}\n\n" + "\n".join(lines) + "\n" + (f"{remarks}\n" if remarks else "")

    def terminal(self) -> str:
        """The report for a terminal."""
        out = StringIO()
        console = Console(file=out, width=max(100, 60 + 24 * len(self.models)))
        grid = Table(box=None, pad_edge=False, padding=(0, 2), header_style="")
        head, *rows = self.lines()
        for place, name in enumerate(head):
            grid.add_column(Text(visible(name)), justify="left" if place < 3 else "right", no_wrap=True)
        for row in rows:
            grid.add_row(*(Text(visible(cell)) for cell in row))
        console.print(grid)
        for line in (self.about(), *self.remarks):
            console.print(visible(line), markup=False, highlight=False, soft_wrap=True)
        return out.getvalue()

    def as_data(self) -> dict[str, Any]:
        """The report as plain values."""
        scores = [{**asdict(score), "mean": score.mean, "spread": score.spread} for score in self.scores]
        shots = list(dict.fromkeys(score.shots for score in self.scores))
        overall = [
            {
                "model": model,
                "shots": number,
                "superb": _plain(self.superb(model, number)),
                "marble": self.marble(model, number),
            }
            for model in self.models
            for number in shots
        ]
        protocol = {"head": self.head, "layers": self.layers, "seeds": self.seeds}
        return {"protocol": protocol, "scores": scores, "overall": overall, "remarks": list(self.remarks)}

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.md`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / REPORT, self.as_data())
        write_text(folder / PAGE, self.markdown())


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _short(names: Sequence[str]) -> list[str]:
    """The last parts of names, as long as they differ."""
    last = [name.rstrip("/").rpartition("/")[2] or name for name in names]
    return last if len(set(last)) == len(names) else list(names)

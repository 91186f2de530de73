"""Traces of recipes: each term, and the size of the gradient, step by step, as a run writes them."""

import json
import math
import os
from pathlib import Path
from typing import Any

from crossdistill import OptimizerConfig, Recipe, run

TRACES = Path(__file__).parent / "training" / "traces"
REGENERATE = os.environ.get("REGENERATE_TRACES") == "1"
RELATIVE, ABSOLUTE = 2e-4, 2e-6
"""What other processors may round otherwise, over a dozen steps in single precision."""


def plainly_trained(made: Recipe, pace: float) -> Recipe:
    """The recipe with three steps of plain SGD an epoch: Adam divides by the gradient's size, and so hides a factor."""
    plain = OptimizerConfig(name="sgd", learning_rate=pace, momentum=0.0)
    stages = tuple(stage.model_copy(update={"optimizer": plain, "steps": 3}) for stage in made.stages)
    return made.model_copy(update={"stages": stages, "device": "cpu"})


def trace_of(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, to seven digits; without accuracies, which move by whole rows where rounding does."""
    run(recipe, out, dataset=recipe.data.load())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: float(f"{value:.7g}") if isinstance(value, float) else value
            for name, value in line.items()
            if name != "accuracy"
        }
        for line in lines
    ]


def differences(then: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """Where two traces part, first lines first."""
    if len(then) != len(now):
        return [f"{len(now)} lines instead of {len(then)}"]
    found = []
    for number, (old, new) in enumerate(zip(then, now, strict=True)):
        where = f"line {number}, {new.get('stage')}, epoch {new.get('epoch')}, step {new.get('step')}"
        if set(old) != set(new):
            found.append(f"{where}: {sorted(set(old) ^ set(new))} in one of them only")
        for name in sorted(set(old) & set(new)):
            one, two = old[name], new[name]
            numbers = isinstance(one, float) and isinstance(two, float)
            same = math.isclose(one, two, rel_tol=RELATIVE, abs_tol=ABSOLUTE) if numbers else one == two
            if not same:
                found.append(f"{where}: {name} was {one}, is {two}")
    return found


def compare_trace(name: str, recipe: Recipe, out: Path) -> None:
    """Compare a run with the trace of this name, or write it anew."""
    file = TRACES / f"{name}.json"
    now = trace_of(recipe, out)
    assert any("gradient_norm" in line for line in now)
    if REGENERATE:
        file.write_text("[\n" + ",\n".join(json.dumps(line) for line in now) + "\n]\n")
    found = differences(json.loads(file.read_text()), now)
    assert not found, f"{len(found)} numbers of {name} are others:\n" + "\n".join(found[:10])

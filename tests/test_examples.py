"""The examples run as they stand, warnings being errors, and do what they say."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crossdistill import load_student
from crossdistill.errors import SettingError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def _play(name: str, folder: Path) -> str:
    """What an example prints, as a process of its own that starts in an empty folder."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_models_trains_a_student_that_loads_again(tmp_path: Path) -> None:
    shown = _play("own_models.py", tmp_path)
    assert re.search(r"\| mine \| radar \| \d% \| kd \| 0\.\d{3} \|", shown), shown
    found = {row["method"]: row for row in json.loads((tmp_path / "runs/own-models/results.json").read_text())}
    assert found["teacher:both"]["mean"] > found["kd"]["mean"] > found["chance"]["mean"] + 0.3
    with pytest.raises(SettingError, match="module="):
        load_student(tmp_path / "runs/own-models")


def test_own_loop_teaches_with_a_loss_and_with_a_method(tmp_path: Path) -> None:
    shown = _play("own_loop.py", tmp_path)
    found = [float(value) for value in re.findall(r": +(0\.\d{3})$", shown, re.MULTILINE)]
    assert len(found) == 3, shown
    assert min(found) > 0.6
    assert not list(tmp_path.iterdir()), "a loop of one's own leaves no folder"


def test_mst_distill_trains_all_three_stages(tmp_path: Path) -> None:
    shown = _play("mst_distill.py", tmp_path)
    assert re.search(r"\| mine \| radar \| 100% \| route \| 0\.\d{3} \|", shown), shown
    found = {row["method"]: row["mean"] for row in json.loads((tmp_path / "runs/mst-distill/results.json").read_text())}
    assert found["route"] > found["chance"] + 0.4
    assert {name for name in found if "@" in name} == {
        f"teacher:{name}" for name in ("both@layers.0", "both@layers.3", "camera@0", "camera@3")
    }
    written = [line for line in (EXAMPLES / "mst_distill.py").read_text().splitlines() if line.strip()]
    assert len(written) <= 40, len(written)


def test_own_models_is_short() -> None:
    tree = ast.parse((EXAMPLES / "own_models.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    code = [
        node for node in tree.body if node not in imports and not isinstance(getattr(node, "value", 0), ast.Constant)
    ]
    lines = {line for node in code for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    written = [line for line in (EXAMPLES / "own_models.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 25, len(lines)
    assert len(written) <= 35, len(written)


def test_every_example_is_played_here() -> None:
    played = re.findall(r'_play\("(\w+\.py)"', Path(__file__).read_text())
    assert sorted(played) == sorted(path.name for path in EXAMPLES.glob("*.py"))

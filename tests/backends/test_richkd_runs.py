"""RichKD with a small real CLIP: through the same names and settings as a large one."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import Heard
from facts import states
from own_files import class_folders

from crossdistill import NetworkConfig, run
from crossdistill.recipes import make

pytest.importorskip("PIL", reason="pip install 'crossdistill[image]'")


def test_the_release_fuses_raw_cosines_and_the_run_says_so(
    folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = class_folders(tmp_path / "pictures", ("one", "two"), each=30)
    settings = [f"data.path={pictures}", f"teachers.clip=transformers:{folder('clip')}", "epochs=1"]
    made = make("folder/richkd-release", settings, 0)
    clip, cnn = made.teachers["clip"], made.teachers["cnn"]
    assert isinstance(clip, NetworkConfig)
    assert isinstance(cnn, NetworkConfig)
    assert cnn.model == "cifar-resnet20"
    raw = {"logit_scale": 1.0, "clean_names": False, "articles": False}
    assert {name: clip.options[name] for name in raw} == raw
    scaled = make("folder/richkd-release", [*settings, "teachers.clip.logit_scale=5"], 0).teachers["clip"]
    assert isinstance(scaled, NetworkConfig)
    assert scaled.options["logit_scale"] == 5
    display = Heard()
    with caplog.at_level(logging.WARNING, "crossdistill"):
        report = run(made, tmp_path / "run", display=display)
    states(next(line for line in display.lines if "fused accuracy" in line), "richkd", "cnn", "clip", "T = 3")
    states(next(text for text in caplog.messages if "cannot move" in text), "'clip'", "logit_scale")
    assert [row.method for row in report.rows][-1] == "richkd-release"

"""A small CLIP that the example trains, as a teacher of folders and tables of pictures."""

import runpy
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Heard
from facts import raises, states
from named import made

from crossdistill import Dataset, InputSpec, run
from crossdistill.backends.saved import rebuilt, saved_options
from crossdistill.errors import CrossdistillError, SettingError
from crossdistill.recipes import make
from crossdistill.runtime.hashing import fingerprint
from crossdistill.training.teacher_agreement import Unlabelled, faults_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_small_clip.py"
CLASSES = ("green_apple", "red_ball")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of green and red pictures, and the folder of the network that the example trained on half of them."""
    pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    image = pytest.importorskip("PIL.Image", reason="the extra `image` is not installed")
    place, draw = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (place / "pictures" / name).mkdir(parents=True)
        for row in range(40):
            picture = draw.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            picture[..., 1 - number] += 100
            image.fromarray(picture).save(place / "pictures" / name / f"{row}.png")
    with pytest.MonkeyPatch.context() as patch:
        sizes = ("--side", "16", "--width", "16", "--layers", "1", "--batch", "20", "--epochs", "6")
        patch.setattr(sys, "argv", ["train_small_clip.py", f"{place}/pictures", f"{place}/clip", *sizes])
        with pytest.MonkeyPatch.context(), torch.random.fork_rng():
            runpy.run_path(str(EXAMPLE), run_name="__main__")
    return place / "pictures", place / "clip"


def test_the_example_s_network_teaches_a_folder(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, clip = trained
    half = (clip / "trained_on.txt").read_text().splitlines()
    assert len(half) == 40
    settings = [f"data.path={pictures}", f"teachers.clip=transformers:{clip}", "epochs=1", "data.workers=0"]
    own = ["teachers.clip.templates=['a photo of a {}', '{}']", "teachers.clip.ensemble=probability"]
    display = Heard()
    run(make("folder/kd", [*settings, *own]), tmp_path / "out", display=display, strict=True)
    said = "\n".join(display.lines)
    states(said, "zero-shot over the names of 2 classes", "2 templates", "'a photo of a green apple'")
    (line,) = [one for one in display.lines if "teachers on the validation split" in one]
    assert float(line.partition("clip accuracy ")[2][:5]) > 0.8


def test_a_teacher_at_chance_names_likely_causes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, clip = trained
    settings = [f"data.path={pictures}", f"teachers.clip=transformers:{clip}", "epochs=1", "data.workers=0"]
    codes = "teachers.clip.class_names={green_apple: n0744, red_ball: n0277}"
    with raises(
        SettingError, "clip", "chance", "'a photo of a n0744'", "class_names", "options.rendering", "templates"
    ):
        run(make("folder/kd", [*settings, codes]), tmp_path / "out", display=Heard(), strict=True)


def test_without_labels_a_zero_shot_teacher_has_its_own_causes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, clip = trained
    settings = [f"data.path={pictures}", f"teachers.clip=transformers:{clip}", "epochs=1", "data.workers=0"]
    plan = [*settings, "data.unlabelled=true", "teachers.clip.zero_shot=true"]
    with raises(CrossdistillError, "clip", "tune=head"):
        run(make("folder/kd", plan), tmp_path / "out", display=Heard())
    found = {"clip": Unlabelled(torch.zeros(4, dtype=torch.int64), 1.0), "other": Unlabelled(torch.zeros(4), 1.0)}
    (_, clip_s), (_, other_s) = faults_of(found, CLASSES, {"clip": "its texts", "other": None})
    states(clip_s, "its texts")
    states(other_s, "red_ball")


def test_a_table_takes_the_settings_of_a_teacher(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, clip = trained
    rows = [f"{path},{path.parent.name}" for path in sorted(pictures.glob("*/*.png"))]
    (tmp_path / "rows.csv").write_text("\n".join(["image,kind", *rows]))
    data = [
        f"data.path={tmp_path}/rows.csv",
        f"data.files={pictures}",
        "data.inputs.image=image",
        "data.target=kind",
    ]
    found = make("table/kd", [*data, f"teachers.clip=transformers:{clip}", "teachers.clip.logit_scale=1.0"])
    teacher: Any = found.teachers["clip"]
    assert teacher.options == {"logit_scale": 1.0}
    assert [stage.name for stage in found.stages] == ["supervised-clip", "kd"]
    with raises(Exception, "clip", "logit_scal", "logit_scale"):
        make("table/kd", [*data, f"teachers.clip=transformers:{clip}", "teachers.clip.logit_scal=1.0"])
    with raises(Exception, "teachers.clip", "logit_scale"):
        make("table/kd", [*data, "teachers.clip.logit_scale=1.0"])


def test_every_setting_is_part_of_the_network_s_key_and_of_a_saved_student(folder: Callable[[str], Path]) -> None:
    spec = InputSpec("image", (3, 32, 32))
    data = Dataset.from_arrays(
        "words", {"image": torch.rand(12, 3, 32, 32)}, ("zero_a", "two") * 6, input_specs={"image": spec}
    )
    two = {"templates": ["a photo of a {}", "digit {}"]}
    changes: list[dict[str, Any]] = [
        {},
        two,
        {**two, "ensemble": "logit"},
        {**two, "ensemble": "probability"},
        {**two, "logit_scale": 2.0},
        {**two, "clean_names": False},
    ]
    networks = [made(folder("clip"), data, options=one).network for one in changes]
    assert len({fingerprint(one) for one in networks}) == len(networks)
    student = made(folder("siglip"), data, student=True, options={**two, "ensemble": "probability"}).network
    options = saved_options(student, 2)
    assert options is not None
    again = rebuilt("transformers", options, student.reads)
    again.load_state_dict(student.state_dict())
    pictures = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        one, other = (network.module.eval()(pictures)["logits"] for network in (student, again))
    assert torch.equal(one, other)
    assert all(a != b for a, b in pairwise(one.flatten().tolist()))

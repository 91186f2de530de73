"""Cost of clips named in a manifest: start and memory with 300,000 files, and hours of audio read per second.

The files are noise that this script writes: 2 s at 16 kHz for the start, each under many names; 20 s at 44.1 kHz for
the rates, of which the data set reads 15.6 s. The plain side is soundfile and soxr alone, in as many processes.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
from resident import child, peak_mb

MANY, FEW = 300_000, 3_000
LINKS = 50_000
"""Names that one file has: a file system counts them up to 65,000 or so."""
CLIPS, WORKERS, BATCH = 96, 2, 8
CROP, RATE = 250_000, 16_000
START_LIMIT_S, MEMORY_LIMIT, RATE_LIMIT = 10.0, 1.3, 1 / 0.9


def write_many(folder: Path, count: int = MANY) -> Path:
    """A manifest of so many names, and the files that they are names of."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    with (folder / "manifest.csv").open("w") as manifest:
        manifest.write("path,domain,duration,rate\n")
        for number in range(count):
            first = number // LINKS * LINKS
            path = folder / f"{number:06d}.wav"
            if number == first:
                soundfile.write(path, wave, RATE)
            elif not path.exists():
                os.link(folder / f"{first:06d}.wav", path)
            manifest.write(f"{path.name},{'speech' if number % 3 else 'music'},2.0,{RATE}\n")
    return folder / "manifest.csv"


def write_long(folder: Path) -> Path:
    """Clips of 20 s at 44.1 kHz in flac files, and their manifest."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(1)
    with (folder / "manifest.csv").open("w") as manifest:
        manifest.write("path,domain,duration,rate\n")
        for number in range(CLIPS):
            soundfile.write(folder / f"{number}.flac", drawn.normal(0, 0.1, 20 * 44_100), 44_100)
            manifest.write(f"{number}.flac,{'speech' if number % 3 else 'music'},20.0,44100\n")
    return folder / "manifest.csv"


def started(manifest: str, rows: int) -> dict[str, float]:
    """Seconds until the data set of a manifest is there, and the peak of memory."""
    from crossdistill.data.sets.speech_music import SpeechMusicConfig

    before, begun = peak_mb(), time.perf_counter()
    data = SpeechMusicConfig(manifest=Path(manifest), workers=0).load()
    assert len(data) == rows
    seconds = time.perf_counter() - begun
    loaded = peak_mb()
    return {"rows": len(data), "seconds": seconds, "before": before, "mb": loaded}


def plainly(task: tuple[str, float]) -> int:
    """Soundfile and soxr alone: one part of a file at 16 kHz, less its mean."""
    import soundfile
    import soxr

    path, start = task
    with soundfile.SoundFile(path) as stream:
        rate = stream.samplerate
        stream.seek(int(start * rate))
        wave = stream.read(int(CROP / RATE * rate), dtype="float32", always_2d=True).mean(1)
    wave = soxr.resample(wave, rate, RATE)
    return len(wave - wave.mean())


def rates(script: object, manifest: Path) -> None:
    """Hours of audio per second of both sides."""
    import torch
    from measure import ratios

    from crossdistill.data.sets.speech_music import SpeechMusicConfig
    from crossdistill.data.workers import Request

    data = SpeechMusicConfig(manifest=manifest, workers=WORKERS).load()
    files = sorted(manifest.parent.glob("*.flac"))
    drawn = torch.Generator().manual_seed(0)

    def ours() -> None:
        order = torch.randperm(len(data), generator=drawn)
        for batch in data.batches((Request(part) for part in order.split(BATCH)), torch.device("cpu")):
            assert batch.inputs["audio"]["values"].shape[1] == CROP

    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:

        def theirs() -> None:
            tasks = [(str(path), float(torch.rand(1, generator=drawn)) * 4.3) for path in files]
            assert len(pool.map(plainly, tasks, chunksize=BATCH)) == len(files)

        measured = ratios(*script.alternate([ours, theirs], 7))
    hours = CLIPS * CROP / RATE / 3600
    shown = [hours / sorted(side)[len(side) // 2] for side in (measured.first, measured.second)]
    print(f"  {shown[0]:.3f} h/s, soundfile and soxr alone {shown[1]:.3f} h/s", flush=True)
    script.ratio(f"{CLIPS} clips with {WORKERS} workers, ours / soundfile and soxr alone", measured, RATE_LIMIT)


def main() -> None:
    """Measure start, memory and rates."""
    from measure import Script

    script = Script(__file__)
    manifests = {count: write_many(script.scratch / str(count), count) for count in (FEW, MANY)}
    few, many = (child(__file__, "--measure", str(path), str(count)) for count, path in manifests.items())
    print(
        f"  {many['rows']:,.0f} rows: {many['seconds']:.1f} s, peak {many['mb']:.0f} MB ({few['mb']:.0f} MB with few)"
    )
    script.value("peak memory with 300,000 files / with 3,000", many["mb"] / few["mb"], MEMORY_LIMIT)
    script.value("seconds to start with a manifest of 300,000 files", many["seconds"], START_LIMIT_S)
    rates(script, write_long(script.scratch / "long"))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        at = sys.argv.index("--measure")
        print(json.dumps(started(sys.argv[at + 1], int(sys.argv[at + 2]))))
    else:
        main()

"""Peak memory of `route` and `specialise` / the reference's way, each in a process of its own.

From the peak goes what the process held after importing torch. What is left holds everything that the stage needs:
networks, masks, data, optimizers, and filling the banks. On CUDA the peak is that of the device's memory.
"""

import json
import sys

import torch
from resident import child, peak_mb, resident_mb

IMPORTED_MB = resident_mb()
ON_DISK = "stages.specialise.optimizer.moments=disk"
LOW_RANK = "stages.specialise.method.masknet=low_rank"


def run(stage: str, side: str, device: str, batch_size: int, *settings: str) -> dict[str, float]:
    """Two steps and a validation pass of one stage in one way: the peak in MB, less that of importing torch.

    Beside it, what the masks' weights take in MB.
    """
    from both_ways import BothWays
    from measure import Script

    sys.argv = [__file__, "--device", device]
    both = BothWays(Script(__file__), "image", 2 * batch_size, batch_size, batch_size, (side,), settings)
    work = both.own(stage) if side == "own" else both.theirs(stage)
    work()
    peak = peak_mb() - IMPORTED_MB if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {"mb": peak, "masks": both.masks_mb}


def main() -> None:
    """Each stage at its batch: 512 on CUDA as published, on a CPU the largest that the reference's way finds room for.

    What masks weigh is the same in both ways (in `route` their weights; in `specialise` Adam's two moments too): a
    second figure leaves it out. On a CPU a third has the moments in files, and the last one the library's low-rank
    masks, which are another network.
    """
    from measure import Script

    script = Script(__file__)
    limits: dict[tuple[str, int], float] = (
        {("route", 128): 0.10, ("specialise", 64): 0.35}
        if script.on_cpu
        else {("route", 512): 0.10, ("specialise", 512): 0.15}
    )
    for (stage, batch_size), limit in limits.items():
        where = (script.device.type, str(batch_size))
        own, theirs = (child(__file__, "--measure", stage, side, *where) for side in ("own", "theirs"))
        print(f"  {stage}: {own['mb']:.0f} MB / {theirs['mb']:.0f} MB, masks {own['masks']:.0f} MB", flush=True)
        name = f"peak memory, {stage} at batch {batch_size} / the reference's way"
        script.value(name, own["mb"] / theirs["mb"], limit)
        held = own["masks"] * (3 if stage == "specialise" else 1)
        script.value(f"{name}, without what masks weigh", (own["mb"] - held) / (theirs["mb"] - held), None)
        others = {
            "moments on disk": (ON_DISK, limit, stage == "specialise" and script.on_cpu),
            "low-rank masks": (LOW_RANK, None, stage == "specialise"),
        }
        for what, (setting, most, here) in others.items():
            if here:
                other = child(__file__, "--measure", stage, "own", *where, setting)
                print(f"  {stage}, {what}: {other['mb']:.0f} MB, masks {other['masks']:.0f} MB", flush=True)
                script.value(f"{name}, {what}", other["mb"] / theirs["mb"], most)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        stage, side, device, batch_size, *settings = sys.argv[2:]
        print(json.dumps(run(stage, side, device, int(batch_size), *settings)))
    else:
        main()

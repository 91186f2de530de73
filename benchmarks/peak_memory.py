"""Peak memory of `route` and `specialise` / of the reference implementation, each in its own process.

The memory of the process after importing torch is subtracted. The rest includes networks, masks, data, optimizers, and
filling the banks. On CUDA it is the peak of the device's memory.
"""

import json
import sys

import torch
from resident import child, peak_mb, resident_mb

IMPORTED_MB = resident_mb()
ON_DISK = "stages.specialise.optimizer.moments=disk"
LOW_RANK = "stages.specialise.method.masknet=low_rank"


def run(stage: str, side: str, device: str, batch_size: int, *settings: str) -> dict[str, float]:
    """Run two steps and a validation pass of one stage on one side.

    Returns the peak in MB, without that of importing torch, and the memory of the masks' weights in MB.
    """
    from both_ways import BothWays
    from measure import Script

    sys.argv = [__file__, "--device", device]
    both = BothWays(Script(__file__), "image", 2 * batch_size, batch_size, batch_size, (side,), settings)
    work = both.library(stage) if side == "library" else both.reference(stage)
    work()
    peak = peak_mb() - IMPORTED_MB if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {"mb": peak, "masks": both.masks_mb}


def main() -> None:
    """Measure each stage at batch size 512 on CUDA, as published; on a CPU at the largest that the reference allows.

    Masks take the same memory on both sides (in `route` their weights, in `specialise` also Adam's two moments): a
    second figure excludes it. On a CPU a third figure has the moments in files, and the last one uses the library's
    low-rank masks, which are another network.
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
        library, reference = (child(__file__, "--measure", stage, side, *where) for side in ("library", "reference"))
        print(
            f"  {stage}: {library['mb']:.0f} MB / {reference['mb']:.0f} MB, masks {library['masks']:.0f} MB", flush=True
        )
        name = f"peak memory, {stage} at batch {batch_size} / the reference's way"
        script.value(name, library["mb"] / reference["mb"], limit)
        weights = library["masks"] * (3 if stage == "specialise" else 1)
        rest = (library["mb"] - weights) / (reference["mb"] - weights)
        script.value(f"{name}, without what masks weigh", rest, None)
        variants = {
            "moments on disk": (ON_DISK, limit, stage == "specialise" and script.on_cpu),
            "low-rank masks": (LOW_RANK, None, stage == "specialise"),
        }
        for variant, (setting, most, measured) in variants.items():
            if measured:
                peak = child(__file__, "--measure", stage, "library", *where, setting)
                print(f"  {stage}, {variant}: {peak['mb']:.0f} MB, masks {peak['masks']:.0f} MB", flush=True)
                script.value(f"{name}, {variant}", peak["mb"] / reference["mb"], most)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        stage, side, device, batch_size, *settings = sys.argv[2:]
        print(json.dumps(run(stage, side, device, int(batch_size), *settings)))
    else:
        main()

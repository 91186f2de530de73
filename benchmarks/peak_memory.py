"""Peak memory of `route` and `specialise` / the reference's way, each in a process of its own.

From the peak goes what the process held after importing torch. What is left holds everything that the stage needs:
networks, masks, data, optimizers, and filling the banks. On CUDA the peak is that of the device's memory.
"""

import json
import sys

import torch
from resident import child, peak_mb, resident_mb

IMPORTED_MB = resident_mb()


def run(stage: str, side: str, device: str, batch_size: int) -> float:
    """Two steps and a validation pass of one stage in one way; the peak in MB, less that of importing torch."""
    from both_ways import BothWays
    from measure import Script

    sys.argv = [__file__, "--device", device]
    both = BothWays(Script(__file__), "image", 2 * batch_size, batch_size, batch_size, sides=(side,))
    work = both.own(stage) if side == "own" else both.theirs(stage)
    work()
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_mb() - IMPORTED_MB


def main() -> None:
    """Each stage at batch 64 on a CPU, 512 on CUDA."""
    from measure import Script

    script = Script(__file__)
    batch_size = 64 if script.on_cpu else 512
    limits = {"route": 0.10, "specialise": 0.35 if script.on_cpu else 0.15}
    for stage, limit in limits.items():
        found = {
            side: child(__file__, "--measure", stage, side, script.device.type, str(batch_size))["mb"]
            for side in ("own", "theirs")
        }
        print(f"  {stage}: {found['own']:.0f} MB / {found['theirs']:.0f} MB", flush=True)
        name = f"peak memory, {stage} at batch {batch_size} / the reference's way"
        script.value(name, found["own"] / found["theirs"], limit)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps({"mb": run(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))}))
    else:
        main()

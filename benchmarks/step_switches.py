"""Effect of the settings that make steps cheaper: time of the audio student with a setting / without it.

No limit is set, since their effect depends on the device.
"""

from typing import Any

import torch
from measure import Script, ratios
from sizes import Course, random_data

from crossdistill.methods import Supervised
from crossdistill.planning.plan import prepare
from crossdistill.recipe import NetworkConfig, Recipe
from crossdistill.stage import Stage


def course(script: Script, name: str, channels_last: bool, **settings: Any) -> Course:
    """Supervised training with some of the settings."""
    train, validation, batch_size = (32, 16, 32) if script.on_cpu else (4096, 512, 512)
    recipe = Recipe(
        data=random_data(train, validation, only=("audio",)),
        student=NetworkConfig(model="three-layer-cnn-a"),
        student_name="audio",
        stages=(Stage(method=Supervised(), epochs=100, batch_size=batch_size, **settings),),
        device=script.device.type,
        channels_last=channels_last,
    )
    plan = prepare(recipe, recipe.data, script.device)
    return Course(plan, plan.jobs[0], script.device, script.scratch / name)


def main() -> None:
    """Measure each setting alone; `compile` only on CUDA, since it needs a C++ compiler on a CPU."""
    script = Script(__file__)
    torch.manual_seed(0)
    switches: dict[str, dict[str, Any]] = {
        "channels_last": {"channels_last": True},
        "bfloat16": {"precision": "bfloat16"},
    }
    if not script.on_cpu:
        switches |= {"cuda_graphs": {"cuda_graphs": True}, "compile": {"compile": True}}
    plain = course(script, "plain", False)
    for name, settings in switches.items():
        switched = course(script, name, **{"channels_last": False, **settings})
        measured = ratios(*script.alternate([switched.epoch, plain.epoch], 5))
        script.ratio(f"{name} on / off, an epoch of ThreeLayerCNN-A alone", measured, None)
        switched.close()
    plain.close()


if __name__ == "__main__":
    main()

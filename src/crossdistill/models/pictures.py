"""The picture networks of the table: those of the CIFAR literature, and ImageNet's ResNets and MobileNet.

Sizes are those of RepDistiller and mdistiller; the stem's output, which methods leave out, is no tap.
"""

from collections.abc import Mapping
from typing import Any

from crossdistill.models.entry import Model


def _stages(depth: int) -> dict[str, str | None]:
    """The last sums of a CIFAR residual network's stages, and these after their activation."""
    return _ends("sum", *[(depth - 2) // 6] * 3)


def _ends(name: str, *blocks: int) -> dict[str, str | None]:
    """The part `name` of each stage's last block, before its activation, and the stage's output."""
    return {f"layer{stage}.{count - 1}.{name}": f"layer{stage}" for stage, count in enumerate(blocks, 1)}


def _pictures(
    source: str,
    reads: tuple[str, ...],
    maps: Mapping[str, str | None],
    about: str,
    fixed: Mapping[str, Any],
    middle: str | None = None,
) -> Model:
    """A picture network: `maps` are its stages' taps before and after their activation, in execution order."""
    ordered = [tap for pair in maps.items() for tap in (reversed(pair) if source == WIDE_RESNET else pair) if tap]
    taps = (*ordered, "avgpool", "flatten")
    return Model(source, reads, taps, about, fixed, ("avgpool", "flatten"), tuple(maps), maps, middle)


RESIDUAL = "crossdistill.models.cifar_resnet:CifarResNet"
WIDE_RESNET = "crossdistill.models.wide_resnet:WideResNet"
WIDE = {"block2.layer.0.bn1": "block1", "block3.layer.0.bn1": "block2", "bn1": "block3"}

PICTURES: Mapping[str, Model] = {
    "cifar-resnet8": _pictures(
        RESIDUAL,
        ("image",),
        _stages(8),
        "He et al. 2016: a residual network of 8 layers for small pictures",
        {"depth": 8},
        "layer2",
    ),
    "cifar-resnet14": _pictures(
        RESIDUAL,
        ("image",),
        _stages(14),
        "He et al. 2016: a residual network of 14 layers for small pictures",
        {"depth": 14},
        "layer2",
    ),
    "cifar-resnet20": _pictures(
        RESIDUAL,
        ("image",),
        _stages(20),
        "He et al. 2016: a residual network of 20 layers for small pictures",
        {"depth": 20},
        "layer2",
    ),
    "cifar-resnet32": _pictures(
        RESIDUAL,
        ("image",),
        _stages(32),
        "He et al. 2016: a residual network of 32 layers for small pictures",
        {"depth": 32},
        "layer2",
    ),
    "cifar-resnet44": _pictures(
        RESIDUAL,
        ("image",),
        _stages(44),
        "He et al. 2016: a residual network of 44 layers for small pictures",
        {"depth": 44},
        "layer2",
    ),
    "cifar-resnet56": _pictures(
        RESIDUAL,
        ("image",),
        _stages(56),
        "He et al. 2016: a residual network of 56 layers for small pictures",
        {"depth": 56},
        "layer2",
    ),
    "cifar-resnet110": _pictures(
        RESIDUAL,
        ("image",),
        _stages(110),
        "He et al. 2016: a residual network of 110 layers for small pictures",
        {"depth": 110},
        "layer2",
    ),
    "cifar-resnet8x4": _pictures(
        RESIDUAL,
        ("image",),
        _stages(8),
        "the same of 8 layers, four times as wide; stem of 32 channels",
        {"depth": 8, "widths": (32, 64, 128, 256)},
        "layer2",
    ),
    "cifar-resnet32x4": _pictures(
        RESIDUAL,
        ("image",),
        _stages(32),
        "the same of 32 layers, four times as wide; stem of 32 channels",
        {"depth": 32, "widths": (32, 64, 128, 256)},
        "layer2",
    ),
    "cifar-resnet18": _pictures(
        "crossdistill.models.resnet:ResNet",
        ("image",),
        _ends("sum", 2, 2, 2, 2),
        "He et al. 2016: ResNet18 with a 3x3 stem for small pictures",
        {"depth": 18, "stem": "cifar"},
        "layer2",
    ),
    "cifar-resnet50": _pictures(
        "crossdistill.models.resnet:ResNet",
        ("image",),
        _ends("sum", 3, 4, 6, 3),
        "He et al. 2016: ResNet50 with a 3x3 stem for small pictures",
        {"depth": 50, "stem": "cifar"},
        "layer2",
    ),
    "cifar-wrn-16-1": _pictures(
        WIDE_RESNET,
        ("image",),
        WIDE,
        "Zagoruyko and Komodakis 2016: a wide residual network of 16 layers, 1 times as wide",
        {"depth": 16, "factor": 1},
        "block2",
    ),
    "cifar-wrn-16-2": _pictures(
        WIDE_RESNET,
        ("image",),
        WIDE,
        "Zagoruyko and Komodakis 2016: a wide residual network of 16 layers, 2 times as wide",
        {"depth": 16, "factor": 2},
        "block2",
    ),
    "cifar-wrn-40-1": _pictures(
        WIDE_RESNET,
        ("image",),
        WIDE,
        "Zagoruyko and Komodakis 2016: a wide residual network of 40 layers, 1 times as wide",
        {"depth": 40, "factor": 1},
        "block2",
    ),
    "cifar-wrn-40-2": _pictures(
        WIDE_RESNET,
        ("image",),
        WIDE,
        "Zagoruyko and Komodakis 2016: a wide residual network of 40 layers, 2 times as wide",
        {"depth": 40, "factor": 2},
        "block2",
    ),
    "cifar-vgg8": _pictures(
        "crossdistill.models.vgg:VGG",
        ("image",),
        {f"block{number}": f"block{number}_relu" for number in range(1, 5)},
        "Simonyan and Zisserman 2015: VGG of 8 layers with batch norm, for small pictures",
        {"depth": 8},
        "block2_relu",
    ),
    "cifar-vgg11": _pictures(
        "crossdistill.models.vgg:VGG",
        ("image",),
        {f"block{number}": f"block{number}_relu" for number in range(1, 5)},
        "Simonyan and Zisserman 2015: VGG of 11 layers with batch norm, for small pictures",
        {"depth": 11},
        "block2_relu",
    ),
    "cifar-vgg13": _pictures(
        "crossdistill.models.vgg:VGG",
        ("image",),
        {f"block{number}": f"block{number}_relu" for number in range(1, 5)},
        "Simonyan and Zisserman 2015: VGG of 13 layers with batch norm, for small pictures",
        {"depth": 13},
        "block2_relu",
    ),
    "cifar-vgg16": _pictures(
        "crossdistill.models.vgg:VGG",
        ("image",),
        {f"block{number}": f"block{number}_relu" for number in range(1, 5)},
        "Simonyan and Zisserman 2015: VGG of 16 layers with batch norm, for small pictures",
        {"depth": 16},
        "block2_relu",
    ),
    "cifar-vgg19": _pictures(
        "crossdistill.models.vgg:VGG",
        ("image",),
        {f"block{number}": f"block{number}_relu" for number in range(1, 5)},
        "Simonyan and Zisserman 2015: VGG of 19 layers with batch norm, for small pictures",
        {"depth": 19},
        "block2_relu",
    ),
    "cifar-mobilenetv2": _pictures(
        "crossdistill.models.mobilenet:MobileNetV2",
        ("image",),
        {f"blocks.{number}": None for number in (1, 2, 4, 6)},
        "Sandler et al. 2018: MobileNetV2 at half width for small pictures",
        {},
        "blocks.2",
    ),
    "cifar-shufflev1": _pictures(
        "crossdistill.models.shufflenet:ShuffleNetV1",
        ("image",),
        _ends("sum", 4, 8, 4),
        "Zhang et al. 2018: ShuffleNet with three groups for small pictures",
        {},
        "layer2",
    ),
    "cifar-shufflev2": _pictures(
        "crossdistill.models.shufflenet:ShuffleNetV2",
        ("image",),
        _ends("joined", 4, 8, 4),
        "Ma et al. 2018: ShuffleNetV2 for small pictures",
        {},
        "layer2",
    ),
    "imagenet-resnet18": _pictures(
        "crossdistill.models.resnet:ResNet",
        ("image",),
        _ends("sum", 2, 2, 2, 2),
        "He et al. 2016: ResNet18 for ImageNet, with torchvision's names of weights",
        {"depth": 18, "stem": "imagenet"},
        "layer2",
    ),
    "imagenet-resnet34": _pictures(
        "crossdistill.models.resnet:ResNet",
        ("image",),
        _ends("sum", 3, 4, 6, 3),
        "He et al. 2016: ResNet34 for ImageNet, with torchvision's names of weights",
        {"depth": 34, "stem": "imagenet"},
        "layer2",
    ),
    "imagenet-resnet50": _pictures(
        "crossdistill.models.resnet:ResNet",
        ("image",),
        _ends("sum", 3, 4, 6, 3),
        "He et al. 2016: ResNet50 for ImageNet, with torchvision's names of weights",
        {"depth": 50, "stem": "imagenet"},
        "layer2",
    ),
    "imagenet-mobilenetv1": _pictures(
        "crossdistill.models.mobilenet:MobileNetV1",
        ("image",),
        {f"model.{number}.4": f"model.{number}.5" for number in (3, 5, 11, 13)},
        "Howard et al. 2017: MobileNet for ImageNet",
        {},
        "model.5.5",
    ),
}

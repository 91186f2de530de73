"""The networks of the CIFAR literature and of ImageNet: parameters, multiply-adds, shapes of taps, names of weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from crossdistill.batch import Batch
from crossdistill.models import build_network, find_model
from crossdistill.network import Network
from crossdistill.outputs import Signal

SMALL = ("16x32", "16x32", "32x16", "64x8")
WIDER = ("32x32", "64x32", "128x16", "256x8")
VGG = ("64x32", "128x16", "256x8", "512x4", "512x4")

# shared/spec/richkd.md, section 3.1: parameters, millions of multiply-adds, maps (the stem's first), embedding.
ZOO = {
    "resnet8": (83_892, 12.51, SMALL, 64),
    "resnet14": (181_108, 26.66, SMALL, 64),
    "resnet20": (278_324, 40.82, SMALL, 64),
    "resnet32": (472_756, 69.13, SMALL, 64),
    "resnet44": (667_188, 97.44, SMALL, 64),
    "resnet56": (861_620, 125.75, SMALL, 64),
    "resnet110": (1_736_564, 253.16, SMALL, 64),
    "resnet8x4": (1_233_540, 177.07, WIDER, 256),
    "resnet32x4": (7_433_860, 1083.04, WIDER, 256),
    "resnet18": (11_220_132, 555.47, ("64x32", "64x32", "128x16", "256x8", "512x4"), 512),
    "resnet50": (23_705_252, 1298.01, ("64x32", "256x32", "512x16", "1024x8", "2048x4"), 2048),
    "wrn-16-1": (180_916, 26.66, SMALL, 64),
    "wrn-16-2": (703_284, 101.12, ("16x32", "32x32", "64x16", "128x8"), 128),
    "wrn-40-1": (569_780, 83.29, SMALL, 64),
    "wrn-40-2": (2_255_156, 327.61, ("16x32", "32x32", "64x16", "128x8"), 128),
    "vgg8": (3_965_028, 96.19, VGG, 512),
    "vgg11": (9_277_284, 209.44, VGG, 512),
    "vgg13": (9_462_180, 284.94, VGG, 512),
    "vgg16": (14_774_436, 398.18, VGG, 512),
    "vgg19": (20_086_692, 511.43, VGG, 512),
    "mobilenetv2": (812_836, 6.52, ("16x16", "12x16", "16x8", "48x4", "160x2"), 1280),
    "shufflev1": (949_258, 38.69, ("24x32", "240x16", "480x8", "960x4"), 960),
    "shufflev2": (1_355_528, 44.50, ("24x32", "116x16", "232x8", "464x4"), 1024),
}
STEMS = {"wrn": "conv1", "vgg": "block0_relu", "mob": "conv1", "shu": "relu1"}
IMAGENET = {
    "resnet18": (11_689_512, ("64x112", "64x56", "128x28", "256x14", "512x7"), 512),
    "resnet34": (21_797_672, ("64x112", "64x56", "128x28", "256x14", "512x7"), 512),
    "resnet50": (25_557_032, ("64x112", "256x56", "512x28", "1024x14", "2048x7"), 2048),
    "mobilenetv1": (4_231_976, ("128x56", "256x28", "512x14", "1024x7"), 1024),
}


def rows(side: int, count: int = 1, **options: object) -> Batch:
    return Batch({"image": torch.randn(count, 3, side, side, **options)}, torch.arange(count))  # type: ignore[call-overload]


def on_meta(name: str, classes: int) -> Network:
    """A network without memory: sizes alone are of interest."""
    with torch.device("meta"):
        return build_network(name, classes=classes).eval()


def shown(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    assert height == width
    return f"{channels}x{height}"


@contextmanager
def multiply_adds(module: nn.Module) -> Iterator[list[int]]:
    """The multiply-adds of each convolution and linear layer that runs, for one picture."""
    counts: list[int] = []

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counts.append(output[0].numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    yield counts


@pytest.mark.parametrize("name", ZOO)
def test_a_cifar_network_has_the_published_sizes(name: str) -> None:
    parameters, millions, maps, embedding = ZOO[name]
    network, model = on_meta(f"cifar-{name}", 100), find_model(f"cifar-{name}")
    assert sum(value.numel() for value in network.parameters()) == parameters
    after = [model.activated(layer) for layer in model.maps]
    stem = STEMS.get(name[:3], "relu")
    network = Network(network.module, network.reads, [stem, *network.taps])
    with multiply_adds(network.module) as counts:
        outputs = network(rows(32, device="meta"), {Signal.LOGITS, *map(Signal.feature, network.taps)})
    assert round(sum(counts) / 1e6, 2) == millions
    features = {tap: tuple(value.shape[1:]) for tap, value in outputs.features.items()}
    assert tuple(shown(features[tap]) for tap in (stem, *after)) == maps
    assert tuple(shown(features[tap]) for tap in model.maps) == maps[1:]
    assert outputs.embedding is not None
    assert outputs.logits is not None
    assert (outputs.embedding.shape, outputs.logits.shape) == ((1, embedding), (1, 100))
    assert features["flatten"] == (embedding,)


@pytest.mark.parametrize("name", IMAGENET)
def test_an_imagenet_network_has_the_published_sizes(name: str) -> None:
    parameters, maps, embedding = IMAGENET[name]
    network, model = on_meta(f"imagenet-{name}", 1000), find_model(f"imagenet-{name}")
    assert sum(value.numel() for value in network.parameters()) == parameters
    stem = ("relu",) if name.startswith("resnet") else ()
    network = Network(network.module, network.reads, [*stem, *network.taps])
    with multiply_adds(network.module) as counts:
        outputs = network(rows(224, device="meta"), {Signal.LOGITS, *map(Signal.feature, network.taps)})
    assert name != "mobilenetv1" or round(sum(counts) / 1e6, 2) == 568.74
    after = [model.activated(layer) for layer in model.maps]
    assert tuple(shown(tuple(outputs.features[tap].shape[1:])) for tap in (*stem, *after)) == maps
    assert outputs.embedding is not None
    assert outputs.embedding.shape == (1, embedding)


@pytest.mark.parametrize("name", ["resnet8x4", "resnet18", "wrn-16-1", "vgg8", "mobilenetv2", "shufflev1", "shufflev2"])
def test_maps_lie_before_an_activation_or_have_none(name: str) -> None:
    torch.manual_seed(0)
    network, model = build_network(f"cifar-{name}", classes=3).eval(), find_model(f"cifar-{name}")
    features = network(rows(32, 2), map(Signal.feature, network.taps)).features
    for before in model.maps:
        after = model.activated(before)
        assert (features[before] < 0).any()
        if name == "mobilenetv2":
            assert after == before
        elif name == "wrn-16-1":
            # The sum of a stage, and the batch norm that the next stage applies to it.
            norm = network.module.get_submodule(before)
            torch.testing.assert_close(norm(features[after]), features[before])
        elif name == "shufflev2":
            # The shuffle permutes channels alone.
            assert torch.equal(features[after].sort(1).values, features[before].relu().sort(1).values)
        else:
            assert torch.equal(features[after], features[before].relu())


@pytest.mark.parametrize("name", ["resnet18", "wrn-16-1", "vgg8", "mobilenetv2", "shufflev1", "shufflev2"])
def test_a_network_can_be_cut_at_every_stage(name: str) -> None:
    network, batch = build_network(f"cifar-{name}", classes=3).eval(), rows(32, 2)
    whole = network(batch).logits
    assert whole is not None
    for tap in (*find_model(f"cifar-{name}").maps, "avgpool"):
        cut = network(batch, {Signal.cut(tap)}).cuts[tap]
        torch.testing.assert_close(network.split(tap)[1](cut).logits, whole)
        assert network.replays(tap) is None


def test_vgg_pools_once_more_where_pictures_have_64_rows() -> None:
    network = on_meta("cifar-vgg8", 5)
    for side, last in ((32, 4), (64, 4), (48, 6)):
        features = network(rows(side, device="meta"), {Signal.feature("block4")}).features
        assert features["block4"].shape == (1, 512, last, last)


def test_first_weights_are_drawn_as_published() -> None:
    torch.manual_seed(0)
    for name, layer in (("wrn-40-2", "block3.layer.1.conv1"), ("vgg13", "block4.0"), ("resnet50", "layer3.1.conv2")):
        module = build_network(f"cifar-{name}", classes=100).module
        convolution = module.get_submodule(layer)
        assert isinstance(convolution, nn.Conv2d)
        wanted = (2 / (9 * convolution.out_channels)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(wanted, rel=0.02)
        assert convolution.bias is None or not convolution.bias.any()
    vgg, wide = (build_network(f"cifar-{name}", classes=100).module for name in ("vgg13", "wrn-40-2"))
    assert vgg.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)  # type: ignore[union-attr]
    assert not vgg.classifier.bias.any()  # type: ignore[union-attr]
    assert not wide.fc.bias.any()  # type: ignore[union-attr]


def test_weights_are_called_as_in_public_checkpoints() -> None:
    path = Path(__file__).parents[3] / "shared/golden/cifar_teacher_state_keys.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine")
    for name, wanted in json.loads(path.read_text()).items():
        network = on_meta(f"cifar-{name.lower().replace('_', '-')}", 100)
        assert {key: list(value.shape) for key, value in network.module.state_dict().items()} == wanted

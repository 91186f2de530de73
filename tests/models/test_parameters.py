"""Published sizes, taps and traceability of the embedded networks."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn

from crossdistill.models.cnn_i import CNNI
from crossdistill.models.lenet5 import LeNet5
from crossdistill.models.small import SmallAudio, SmallImage, SmallMultimodal
from crossdistill.models.three_layer_cnn import ThreeLayerCNNA

Net = type[LeNet5] | type[ThreeLayerCNNA] | type[CNNI] | type[SmallImage] | type[SmallAudio] | type[SmallMultimodal]


@dataclass(frozen=True)
class Expected:
    net: Net
    parameters: int
    inputs: tuple[tuple[int, ...], ...]
    taps: dict[str, tuple[int, ...]]


IMAGE, AUDIO = (1, 28, 28), (1, 112, 112)
SMALL_IMAGE, SMALL_AUDIO = (1, 8, 8), (1, 32, 32)


def rectified(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Layers and the activations behind them, whose shapes are theirs; a double underscore stands for a dot."""
    return {f"{name.replace('__', '.')}{end}": shape for name, shape in shapes.items() for end in ("", "_relu")}


EXPECTED = [
    Expected(LeNet5, 61_706, (IMAGE,), {
        **rectified(conv1=(6, 28, 28), conv2=(16, 10, 10), conv3=(120, 1, 1), fc1=(84,)),
        "flatten_identity": (120,), "fc2": (10,),
    }),
    Expected(ThreeLayerCNNA, 343_562, (AUDIO,), {
        **rectified(conv1=(32, 112, 112), conv2=(64, 56, 56), conv3=(128, 28, 28)),
        "conv3_maxpool": (128, 14, 14), "conv3_maxpool_flatten": (25_088,), "fc1": (10,),
    }),
    Expected(CNNI, 1_809_752, (IMAGE, AUDIO), {
        **rectified(image__conv1=(6, 28, 28), image__conv2=(16, 10, 10)),
        **rectified(audio__conv1=(32, 112, 112), audio__conv2=(64, 56, 56), audio__conv3=(128, 28, 28)),
        **rectified(audio__conv4=(256, 14, 14), audio__conv5=(512, 7, 7)),
        "concat_identity": (596,), "fc1": (298,), "fc2": (10,),
    }),
    Expected(SmallImage, 16_290, (SMALL_IMAGE,), rectified(conv1=(16, 8, 8), conv2=(24, 4, 4), fc1=(32,))),
    Expected(
        SmallAudio, 17_378, (SMALL_AUDIO,),
        rectified(conv1=(8, 16, 16), conv2=(16, 8, 8), conv3=(24, 4, 4), fc1=(32,)),
    ),
    Expected(SmallMultimodal, 46_690, (SMALL_IMAGE, SMALL_AUDIO), {
        **rectified(image_conv1=(16, 8, 8), image_conv2=(24, 4, 4)),
        **rectified(audio_conv1=(12, 16, 16), audio_conv2=(24, 8, 8), audio_conv3=(32, 4, 4), fc1=(48,)),
        "concat_identity": (64,),
    }),
]  # fmt: skip
every_net = pytest.mark.parametrize("expected", EXPECTED, ids=lambda e: e.net.__name__)


def _inputs(expected: Expected, rows: int = 2) -> list[Tensor]:
    return [torch.randn(rows, *shape) for shape in expected.inputs]


@every_net
def test_parameters_and_classes(expected: Expected) -> None:
    assert sum(p.numel() for p in expected.net().parameters()) == expected.parameters
    assert expected.net(classes=7)(*_inputs(expected)).shape == (2, 7)


@every_net
def test_taps(expected: Expected) -> None:
    net = expected.net()
    seen: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> object:
        return lambda module, inputs, output: seen.update({name: tuple(output.shape[1:])})

    for name in expected.taps:
        net.get_submodule(name).register_forward_hook(keep(name))
    net(*_inputs(expected))
    assert seen == expected.taps


@every_net
def test_the_graph_can_be_traced_and_holds_every_tap(expected: Expected) -> None:
    net = expected.net()
    traced = fx.symbolic_trace(net)
    inputs = _inputs(expected, rows=3)
    torch.testing.assert_close(traced(*inputs), net(*inputs), rtol=0, atol=0)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert set(expected.taps) <= called


@every_net
def test_rows_do_not_mix(expected: Expected) -> None:
    net = expected.net()
    inputs = _inputs(expected, rows=3)
    torch.testing.assert_close(net(*inputs)[1:], net(*[value[1:] for value in inputs]), rtol=1e-5, atol=1e-6)


@every_net
def test_every_parameter_is_trained(expected: Expected) -> None:
    net: nn.Module = expected.net()
    net(*_inputs(expected)).logsumexp(1).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []


def test_the_image_comes_first_in_the_joined_features() -> None:
    net = CNNI()
    joined: list[Tensor] = []
    net.concat_identity.register_forward_hook(lambda module, inputs, output: joined.append(output))
    image, audio = torch.randn(2, *IMAGE), torch.randn(2, *AUDIO)
    net(image, audio)
    torch.testing.assert_close(joined[0], torch.cat([net.image(image), net.audio(audio)], dim=1))


def test_the_published_head_is_linear_and_the_small_one_is_not() -> None:
    def bend(net: CNNI | SmallMultimodal, width: int) -> float:
        first, second = torch.randn(2, 4, width) * 5
        active = net if isinstance(net, SmallMultimodal) else None

        def head(joint: Tensor) -> Tensor:
            hidden = net.fc1(joint)
            return net.fc2(hidden if active is None else hidden.relu())

        return float((head((first + second) / 2) - (head(first) + head(second)) / 2).detach().abs().max())

    assert bend(CNNI(), 596) < 1e-4
    assert bend(SmallMultimodal(), 64) > 1e-2

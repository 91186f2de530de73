"""Networks for data of any size: sizes as published, names of public checkpoints, padding, fusion."""

import json
from pathlib import Path

import pytest
import torch

from crossdistill.batch import Batch
from crossdistill.errors import SettingError
from crossdistill.models import build_network
from crossdistill.models.text_cnn import TextCNN
from crossdistill.outputs import Signal
from tests.facts import raises

# RepDistiller's networks with 100 classes (shared/spec/richkd.md, section 3.1).
PARAMETERS = {8: 83_892, 14: 181_108, 20: 278_324, 32: 472_756, 44: 667_188, 56: 861_620, 110: 1_736_564}


def batch(**inputs: object) -> Batch:
    return Batch(inputs=inputs, ids=torch.arange(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", PARAMETERS)
def test_cifar_resnets_have_the_published_number_of_parameters(depth: int) -> None:
    network = build_network(f"cifar-resnet{depth}", classes=100)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[depth]


def test_a_wider_one_has_the_published_number_too() -> None:
    network = build_network("cifar-resnet8", classes=100, widths=(32, 64, 128, 256))
    assert sum(p.numel() for p in network.parameters()) == 1_233_540


@pytest.mark.parametrize("depth", [56, 110])
def test_weights_are_called_as_in_public_checkpoints(depth: int) -> None:
    path = Path(__file__).parents[3] / "shared/golden/cifar_teacher_state_keys.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine")
    wanted = json.loads(path.read_text())[f"resnet{depth}"]
    state = build_network(f"cifar-resnet{depth}", classes=100).module.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == wanted


def test_taps_are_the_stages_before_and_after_their_activation() -> None:
    spec = build_network("cifar-resnet14", classes=7).eval().probe(batch(image=torch.randn(3, 3, 32, 32)))
    assert spec.features["layer1"] == spec.features["layer1.1.sum"] == (16, 32, 32)
    assert spec.features["layer2"] == spec.features["layer2.1.sum"] == (32, 16, 16)
    assert spec.features["layer3"] == spec.features["layer3.1.sum"] == (64, 8, 8)
    assert spec.features["flatten"] == spec.embedding == (64,)
    assert spec.logits == (7,)


def test_pictures_of_any_size_and_spectrograms_fit() -> None:
    network = build_network("cifar-resnet8", ("sound",), classes=5, channels=1, stride=2).eval()
    assert network(batch(sound=torch.randn(3, 1, 64, 101))).logits.shape == (3, 5)  # type: ignore[union-attr]


def test_a_depth_that_no_residual_network_has_is_refused() -> None:
    from crossdistill.models.cifar_resnet import CifarResNet

    with raises(ValueError, "6n + 2", "9"):
        CifarResNet(9)
    with raises(SettingError, "depth"):
        build_network("cifar-resnet8", classes=2, depth=14)


def test_padding_changes_no_text() -> None:
    torch.manual_seed(0)
    module = TextCNN(classes=3).eval()
    ids = torch.randint(1, 257, (2, 9))
    short = module(ids, torch.ones(2, 9, dtype=torch.int64))
    padded = torch.nn.functional.pad(ids, (0, 6))
    mask = torch.nn.functional.pad(torch.ones(2, 9, dtype=torch.int64), (0, 6))
    torch.testing.assert_close(module(padded, mask), short)


@pytest.mark.parametrize("tap", ["concat", "fc1_relu", "encoders.image.layer2"])
def test_fusion_reads_pictures_numbers_and_tokens_and_can_be_cut(tap: str) -> None:
    encoders = {
        "image": {"model": "cifar-resnet8", "options": {"channels": 1}},
        "text": {"model": "text-cnn"},
        "numbers": {"model": "mlp", "options": {"features": 4}},
    }
    network = build_network("fusion", ("image", "text", "numbers"), classes=5, encoders=encoders).eval()
    text = {"input_ids": torch.randint(1, 257, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.int64)}
    rows = batch(image=torch.randn(3, 1, 16, 16), text=text, numbers=torch.randn(3, 4))
    network = network.showing([tap], rows)
    whole = network(rows)
    assert whole.logits is not None
    assert whole.logits.shape == (3, 5)
    cut = network(rows, {Signal.cut(tap)}).cuts[tap]
    torch.testing.assert_close(network.split(tap)[1](cut).logits, whole.logits)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_fusion_refuses_an_encoder_without_an_embedding() -> None:
    with raises(SettingError, "image", "embedding"):
        build_network("fusion", ("image",), classes=5, encoders={"image": {"model": "lenet5"}})


def test_networks_without_classes_give_an_embedding_alone() -> None:
    outputs = build_network("cifar-resnet8", classes=0).eval()(batch(image=torch.randn(3, 3, 32, 32)))
    assert outputs.logits is None
    assert outputs.embedding is not None
    assert outputs.embedding.shape == (3, 64)

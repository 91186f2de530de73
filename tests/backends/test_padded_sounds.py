from typing import Any

import pytest
import torch

from crossdistill import Batch, Network
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.transformers_body import with_kind
from crossdistill.errors import ShapeError
from crossdistill.outputs import Signal

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

BLOCKS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SOUND: dict[str, Any] = {
    "conv_dim": [16, 16, 16],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LENGTHS = torch.tensor([2400, 1601, 777])


POSITIONS: dict[str, Any] = {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}


def network_of(kind: str, norm: str = "group", **more: Any) -> Network:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**BLOCKS, **SOUND, "feat_extract_norm": norm, **more})
    model = getattr(transformers, f"{kind}Model")(config)
    # The random normalisation of a new model is the identity, which would hide a missing scale.
    with torch.no_grad():
        for one in model.modules():
            if isinstance(one, torch.nn.GroupNorm | torch.nn.BatchNorm1d):
                one.weight.uniform_(0.5, 1.5)
                one.bias.uniform_(-0.5, 0.5)
    module = Pretrained(with_kind(model, "audio", classifier=False, pooled=False))
    return Network(module.eval(), ("x",), module.taps)


@pytest.mark.parametrize(
    ("kind", "norm", "more"),
    [
        ("Hubert", "group", {}),
        ("Hubert", "layer", {"conv_pos_batch_norm": True}),
        ("Wav2Vec2", "layer", {"do_stable_layer_norm": True}),
        ("WavLM", "group", {}),
        ("UniSpeech", "group", {}),
        ("UniSpeechSat", "group", {}),
        ("Data2VecAudio", "layer", POSITIONS),
    ],
)
def test_a_padded_batch_gives_each_row_what_the_single_clip_gives(kind: str, norm: str, more: dict[str, Any]) -> None:
    network = network_of(kind, norm, **more)
    names = sorted(network.state_dict())
    clips = [torch.randn(int(length)) for length in LENGTHS]
    values = torch.full((3, 2400), 50.0) * torch.randn(3, 2400)
    for row, clip in enumerate(clips):
        values[row, : len(clip)] = clip
    frames = network.frames(LENGTHS)
    assert frames is not None
    signals = {Signal.EMBEDDING, *map(Signal.feature, network.taps)}
    with torch.no_grad():
        whole = network(Batch({"x": {"values": values, "lengths": LENGTHS}}, torch.arange(3)), signals)
        for row, clip in enumerate(clips):
            alone = network(Batch({"x": clip[None]}, torch.arange(1)), signals)
            for tap in network.taps:
                valid = alone.features[tap].shape[1]
                assert int(frames[row]) == valid
                torch.testing.assert_close(
                    whole.features[tap][row, :valid], alone.features[tap][0], rtol=1e-4, atol=1e-5
                )
            torch.testing.assert_close(
                whole.need(Signal.EMBEDDING)[row], alone.need(Signal.EMBEDDING)[0], rtol=1e-4, atol=1e-5
            )
    assert sorted(network.state_dict()) == names


def test_frames_follow_the_rule_of_the_published_convolutions_and_are_unknown_for_other_networks() -> None:
    from crossdistill.backends.sound_frames import conv_frames

    kernels, strides = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
    found = conv_frames(torch.tensor([250_000, 160_000, 480_000, 400, 399]), kernels, strides)
    assert found.tolist() == [781, 499, 1499, 1, 0]
    assert Network(torch.nn.Linear(2, 2), ("audio",)).frames(torch.tensor([400])) is None


def test_a_padded_batch_trains_with_gradients_of_the_single_clip() -> None:
    network = network_of("Hubert", "group")
    clip = torch.randn(1, 777)
    padded = torch.nn.functional.pad(clip, (0, 500), value=9.0)
    found = []
    for value in (clip, {"values": padded, "lengths": torch.tensor([777])}):
        network.zero_grad()
        network(Batch({"x": value}, torch.arange(1)), {Signal.EMBEDDING}).need(
            Signal.EMBEDDING
        ).square().sum().backward()
        found.append([one.grad for one in network.parameters() if one.grad is not None])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("Wav2Vec2Conformer", {}, "wav2vec2-conformer"),
        ("SEW", {"squeeze_factor": 2}, "sew"),
        ("Wav2Vec2", {"add_adapter": True}, "adapter"),
    ],
)
def test_padding_is_refused_for_models_whose_rows_depend_on_it(kind: str, more: dict[str, Any], said: str) -> None:
    network = network_of(kind, **more)
    values = torch.randn(2, 900)
    with pytest.raises(ShapeError, match=rf"{said}.*700 to 900"):
        network(Batch({"x": {"values": values, "lengths": torch.tensor([900, 700])}}, torch.arange(2)))
    # Rows of one length have no padding.
    padded = {"values": values, "lengths": torch.tensor([900, 900])}
    with torch.no_grad():
        found = [network(Batch({"x": value}, torch.arange(2)), {Signal.EMBEDDING}) for value in (values, padded)]
    assert torch.equal(found[0].need(Signal.EMBEDDING), found[1].need(Signal.EMBEDDING))


@pytest.mark.parametrize("kind", ["Hubert", "Data2VecAudio"])
def test_a_clip_below_the_receptive_field_is_refused_alone_and_in_a_batch(kind: str) -> None:
    network = network_of(kind, **(POSITIONS if kind == "Data2VecAudio" else {}))
    # (1 - 1) * 2 + 2 = 2 inputs of the last convolution, (2 - 1) * 2 + 3 = 5 of the second, (5 - 1) * 5 + 10 = 30.
    lengths = torch.tensor([900, 29, 400])
    refused = [
        (torch.randn(2, 29), r"every row has 29 samples.* 30 "),
        ({"values": torch.randn(3, 900), "lengths": lengths}, r"row 1 of the batch has 29 samples.* 30 "),
    ]
    for value, said in refused:
        with pytest.raises(ShapeError, match=said):
            network(Batch({"x": value}, torch.arange(len(lengths) if isinstance(value, dict) else 2)))
    with torch.no_grad():
        assert network(Batch({"x": torch.randn(1, 30)}, torch.arange(1)), {Signal.EMBEDDING}).embedding is not None

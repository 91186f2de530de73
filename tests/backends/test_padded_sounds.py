from typing import Any

import pytest
import torch

from crossdistill import Batch, Network
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.transformers_body import with_kind
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


def network_of(kind: str, norm: str) -> Network:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**BLOCKS, **SOUND, feat_extract_norm=norm)
    model = getattr(transformers, f"{kind}Model")(config)
    # The random normalisation of a new model is the identity, which would hide a missing scale.
    with torch.no_grad():
        for one in model.modules():
            if isinstance(one, torch.nn.GroupNorm):
                one.weight.uniform_(0.5, 1.5)
                one.bias.uniform_(-0.5, 0.5)
    module = Pretrained(with_kind(model, "audio", classifier=False, pooled=False))
    return Network(module.eval(), ("audio",), module.taps)


# transformers passes WavLM's masks to PyTorch in two types, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize(("kind", "norm"), [("Hubert", "group"), ("Wav2Vec2", "layer"), ("WavLM", "group")])
def test_a_padded_batch_gives_each_row_what_the_single_clip_gives(kind: str, norm: str) -> None:
    network = network_of(kind, norm)
    names = sorted(network.state_dict())
    clips = [torch.randn(int(length)) for length in LENGTHS]
    values = torch.full((3, 2400), 50.0) * torch.randn(3, 2400)
    for row, clip in enumerate(clips):
        values[row, : len(clip)] = clip
    frames = network.frames(LENGTHS)
    assert frames is not None
    signals = {Signal.EMBEDDING, *map(Signal.feature, network.taps)}
    with torch.no_grad():
        whole = network(Batch({"audio": {"values": values, "lengths": LENGTHS}}, torch.arange(3)), signals)
        for row, clip in enumerate(clips):
            alone = network(Batch({"audio": clip[None]}, torch.arange(1)), signals)
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
        network(Batch({"audio": value}, torch.arange(1)), {Signal.EMBEDDING}).need(
            Signal.EMBEDDING
        ).square().sum().backward()
        found.append([one.grad for one in network.parameters() if one.grad is not None])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)

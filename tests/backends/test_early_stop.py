"""Teachers of transformers run up to their highest layer that is read, with the bits of the whole pass."""

from typing import Any

import pytest
import torch

from crossdistill import Batch, Network
from crossdistill.backends.pretrained import Pretrained
from crossdistill.backends.transformers_body import with_kind
from crossdistill.outputs import Signal
from crossdistill.teacher import Live

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

BLOCKS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
WAVES: dict[str, Any] = {
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [8, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER: dict[str, Any] = {"d_model": 16, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
WHISPER |= {"num_mel_bins": 8, "max_source_positions": 20, "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1}
WHISPER |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "eos_token_id": 2}
WHISPER |= {"decoder_start_token_id": 1}
PICTURE: dict[str, Any] = {"image_size": 16, "patch_size": 8}
PADDED = {"values": torch.randn(2, 900), "lengths": torch.tensor([900, 700])}
FAMILIES: dict[str, tuple[str, dict[str, Any], str, Any]] = {
    "hubert": ("Hubert", WAVES, "audio", PADDED),
    "hubert-stable": ("Hubert", {**WAVES, "do_stable_layer_norm": True}, "audio", PADDED),
    "wavlm": ("WavLM", WAVES, "audio", PADDED),
    "wav2vec2": ("Wav2Vec2", WAVES, "audio", PADDED),
    "vit": ("ViT", PICTURE, "image", torch.randn(2, 3, 16, 16)),
    "bert": ("Bert", {"vocab_size": 9}, "text", {"input_ids": torch.tensor([[1, 2, 3]] * 2)}),
    "whisper": ("Whisper", WHISPER, "audio", torch.randn(2, 8, 40)),
    "ast": ("AST", {"num_mel_bins": 16, "max_length": 32, "patch_size": 16}, "audio", torch.randn(2, 32, 16)),
}


# transformers passes WavLM's masks to PyTorch in two types, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_no_block_runs_after_the_highest_layer_that_is_read(family: str) -> None:
    torch.manual_seed(0)
    name, sizes, kind, value = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**BLOCKS, **sizes})
    body = with_kind(getattr(transformers, f"{name}Model")(config), kind, classifier=False, pooled=False)
    module = Pretrained(body).eval()
    blocks: list[int] = []
    for number, block in enumerate(body.layers(), 1):
        block.register_forward_pre_hook(lambda _m, _a, number=number: blocks.append(number))
    batch = Batch({"x": value}, torch.arange(2))
    network = Network(module, ("x",), module.taps)
    assert network.taps == ("layer1", "layer2", "layer3", "layer4")
    network.probe(batch)
    wanted = {Signal.feature("layer1"), Signal.feature("layer2")}
    with torch.no_grad():
        whole = network(batch, {*wanted, Signal.EMBEDDING})
    assert blocks[-4:] == [1, 2, 3, 4]
    teacher = Live("teacher", network, wanted)
    blocks.clear()
    found = [teacher(batch) for _ in range(2)][-1]
    assert blocks == [1, 2] * 2
    assert (found.embedding, found.logits) == (None, None)
    for signal in wanted:
        assert torch.equal(found.need(signal), whole.need(signal))
    # The state that a pass leaves behind is that of a whole one.
    embedding = teacher.select({Signal.EMBEDDING})(batch).need(Signal.EMBEDDING)
    assert torch.equal(embedding, whole.need(Signal.EMBEDDING))
    assert blocks == [1, 2] * 2 + [1, 2, 3, 4]

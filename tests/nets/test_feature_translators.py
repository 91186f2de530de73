"""Heads of speech and music distillation: published sizes, and no valid frame that depends on padding."""

import pytest
import torch

from crossdistill.nets.feature_translators import TranslatorKind, feature_translator

COUNTS = {"mlp": 3_543_552, "lconv": 9_303_552, "layer-mlp": 3 * 2_361_600, "layer-lconv": 3 * 2_952_960}


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
def test_a_head_has_the_published_number_of_parameters(kind: TranslatorKind, count: int) -> None:
    with torch.device("meta"):
        head = feature_translator(kind, 768, 768, 3)
    assert sum(p.numel() for p in head.parameters()) == count


def test_a_head_on_half_of_the_channels_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        head = feature_translator("half", 384, 768, 3)
    assert sum(p.numel() for p in head.parameters()) == 2_658_816


@pytest.mark.parametrize("kind", ["mlp", "lconv", "layer-mlp", "layer-lconv", "conv", "transformer", "light"])
def test_padded_frames_change_no_valid_frame(kind: TranslatorKind) -> None:
    torch.manual_seed(0)
    head = feature_translator(kind, 8, 6, 2)
    frames, valid = torch.randn(3, 7, 8), torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    garbage = frames.masked_fill(~valid[..., None], torch.nan)
    clean, dirty = head(frames, valid), head(garbage, valid)
    assert clean.shape == (3, 2, 7, 6)
    assert torch.equal(*(value.transpose(1, 2)[valid] for value in (clean, dirty)))
    alone = head(frames[1:2, :4], None)
    assert torch.allclose(alone[0], clean[1, :, :4], atol=1e-6)

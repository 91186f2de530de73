"""Small real models of transformers, made from configurations and saved as folders: python small_models.py FOLDER."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

DIGITS = tuple("0123456789")
PICTURE = {
    "image_processor_type": "ViTImageProcessor",
    **{"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255},
    **{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": 32, "width": 32}},
}
CLIP_PICTURE = {
    **PICTURE,
    "image_processor_type": "CLIPImageProcessor",
    **{"resample": 3, "size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
}
SOUND = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000, "feature_size": 1}
SOUND |= {"do_normalize": True, "padding_value": 0.0, "return_attention_mask": False}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "digit", "zero", "one", "two", "three", "four", "five", "photo", "of")
CARD = "---\nlicense: {}\n---\n# A small model\n"


def named(classes: Sequence[str]) -> dict[str, Any]:
    """The classes of a configuration."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


def vit(folder: Path, classes: Sequence[str] = DIGITS, licence: str = "apache-2.0") -> Path:
    """A picture classifier with three blocks."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**BLOCKS, image_size=32, patch_size=8, **named(classes))
    return _saved(folder, ViTForImageClassification(config), PICTURE, licence)


def dinov2(folder: Path) -> Path:
    """A picture encoder."""
    from transformers import Dinov2Config, Dinov2Model

    return _saved(folder, Dinov2Model(Dinov2Config(**BLOCKS, image_size=32, patch_size=8)), PICTURE)


def resnet(folder: Path, classes: Sequence[str] = DIGITS) -> Path:
    """A convolutional picture classifier with four stages."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return _saved(folder, ResNetForImageClassification(ResNetConfig(**sizes, **named(classes))), PICTURE)


def swin(folder: Path, classes: Sequence[str] = DIGITS) -> Path:
    """A hierarchical picture classifier with two stages."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    config.update(named(classes))
    return _saved(folder, SwinForImageClassification(config), PICTURE)


def clip(folder: Path) -> Path:
    """Pictures and texts in one space."""
    from transformers import CLIPConfig, CLIPModel

    text = {**BLOCKS, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    config = CLIPConfig(
        text_config={**text, "pad_token_id": 0},
        vision_config={**BLOCKS, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return tokenizer(_saved(folder, CLIPModel(config), CLIP_PICTURE, "mit"))


def siglip(folder: Path) -> Path:
    """Pictures and texts in one space, trained with a sigmoid."""
    from transformers import SiglipConfig, SiglipModel

    vision = {**BLOCKS, "image_size": 32, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=_text_of_siglip(), vision_config=vision))
    return tokenizer(_saved(folder, _scaled(model), PICTURE))


def siglip2(folder: Path) -> Path:
    """The same for pictures of any proportions, of at most 16 patches."""
    from transformers import Siglip2Config, Siglip2Model

    vision = {**BLOCKS, "num_patches": 16, "patch_size": 8}
    model = Siglip2Model(Siglip2Config(text_config=_text_of_siglip(), vision_config=vision))
    picture = {key: value for key, value in PICTURE.items() if key != "size"}
    picture |= {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    return tokenizer(_saved(folder, _scaled(model), picture))


def _text_of_siglip() -> dict[str, Any]:
    tokens = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "pad_token_id": 0}
    return {**BLOCKS, **tokens, "eos_token_id": 3, "bos_token_id": 2}


def _scaled(model: Any) -> Any:
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        model.logit_bias.fill_(-2.5)
    return model


def bert(folder: Path) -> Path:
    """A text encoder with a tokenizer of a few words."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**BLOCKS, vocab_size=len(WORDS), max_position_embeddings=16)
    return tokenizer(_saved(folder, BertModel(config, add_pooling_layer=False), None))


def wav2vec2(folder: Path) -> Path:
    """A sound encoder that reads waves."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {"conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [8, 4], "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return _saved(folder, Wav2Vec2Model(Wav2Vec2Config(**BLOCKS, **sizes, **positions)), SOUND)


def whisper(folder: Path) -> Path:
    """An encoder and decoder of speech, of which the encoder is used; 2 seconds."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tokens = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(**sizes, **heads, **tokens, num_mel_bins=16, max_source_positions=100)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return _saved(folder, WhisperModel(config), None)


def ast(folder: Path, classes: Sequence[str] = DIGITS) -> Path:
    """A sound classifier that reads Kaldi's filter bank."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    config = ASTConfig(**BLOCKS, num_mel_bins=16, max_length=64, patch_size=16, frequency_stride=8, time_stride=8)
    config.update(named(classes))
    ASTFeatureExtractor(num_mel_bins=16, max_length=64).save_pretrained(folder)
    return _saved(folder, ASTForAudioClassification(config), None)


def tokenizer(folder: Path) -> Path:
    """Writes a tokenizer of a few words into a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made.save(str(folder / "tokenizer.json"))
    return folder


def _saved(folder: Path, model: Any, processor: Mapping[str, Any] | None, licence: str = "apache-2.0") -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    (folder / "README.md").write_text(CARD.format(licence), encoding="utf-8")
    return folder


MODELS: Mapping[str, Callable[[Path], Path]] = {
    one.__name__: one for one in (vit, dinov2, resnet, swin, clip, siglip, siglip2, bert, wav2vec2, whisper, ast)
}

if __name__ == "__main__":
    torch.manual_seed(0)
    for name, make in MODELS.items():
        make(Path(sys.argv[1]) / name)

"""MERT (`mert_model`, `music_hubert`; Li et al. 2024): HuBERT's architecture and weights, read without its own code.

Its published class adds two parts to HuBERT: a constant-Q spectrogram beside the convolutions, and deep normalisation,
which alone reads `attention_relax`. Every published model has both off, and then computes what `HubertModel` computes.
"""

from collections.abc import Mapping
from typing import Any

from crossdistill.errors import SettingError

TYPES = frozenset(["mert_model", "music_hubert"])
"""Values of `model_type` that transformers does not know."""
ADDED: Mapping[str, str] = {
    "feature_extractor_cqt": "a constant-Q spectrogram beside its convolutions",
    "deepnorm": "blocks of deep normalisation",
}
"""Settings of the two parts that HuBERT lacks."""
OF_MERT = ("auto_map", "model_type", "architectures", "attention_relax", "feature_extractor_cqt_bins", *ADDED)
PARTS = ("feature_extractor.", "feature_projection.", "encoder.")
"""Beginnings of the weights of `HubertModel`."""


def is_mert(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of MERT."""
    return config.get("model_type") in TYPES


def as_hubert(config: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The configuration of a `HubertModel` that computes what this MERT does.

    Raises:
        SettingError: a part that HuBERT lacks is on; names it.
    """
    for name, part in ADDED.items():
        if config.get(name) not in (None, False):
            raise SettingError(
                f"{who}: its {name} is {config[name]!r}: it has {part}, which HubertModel lacks, and code of a model's "
                f"folder is never run; wanted a MERT with {name} false, as the published ones are"
            )
    kept = {key: value for key, value in config.items() if key not in OF_MERT}
    return {**kept, "model_type": "hubert", "architectures": ["HubertModel"]}


def check_rate(config: Mapping[str, Any], settings: Mapping[str, Any] | None, who: str) -> None:
    """Compare the rate of a MERT with that of its feature extractor: 16 kHz of v0, 24 kHz of v1.

    Raises:
        SettingError: they differ; names both.
    """
    own, given = config.get("sample_rate"), (settings or {}).get("sampling_rate")
    if own is not None and given is not None and own != given:
        raise SettingError(
            f"{who}: config.json says {own} samples a second, preprocessor_config.json {given}; correct the wrong one"
        )


def check_weights(unexpected: set[str], who: str) -> tuple[str, ...]:
    """A line on weights of a MERT that `HubertModel` does not have, if there are any.

    Raises:
        SettingError: some belong to its blocks or convolutions, so that it is no HuBERT.
    """
    inside = sorted(name for name in unexpected if name.removeprefix("hubert.").startswith(PARTS))
    if inside:
        raise SettingError(
            f"{who}: {len(inside)} of its weights, such as {inside[0]!r}, have no place in HubertModel: it has parts "
            "that its config.json does not name"
        )
    if not unexpected:
        return ()
    return (f"{len(unexpected)} of its weights are not of the encoder and not read, such as {min(unexpected)!r}",)

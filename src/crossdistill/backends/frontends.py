"""Spectrograms that speech models read, in tensors: those of Whisper and of AST, equal to their feature extractors'."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backends.pretrained import ExactBuffers
from crossdistill.errors import SettingError
from crossdistill.losses.hidden_states import valid_frames

FLOOR = 1.192092955078125e-07
"""Smallest energy of Kaldi's filter bank."""


class WhisperFrontend(ExactBuffers):
    """Log-mel spectrograms (B, bands, frames) of Whisper's window, by default 30 s, of waves (B, samples).

    As by its feature extractor, shorter waves are padded with zeros, and longer ones cut.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.n_fft, self.hop = int(config.get("n_fft", 400)), int(config.get("hop_length", 160))
        bands, rate = int(config["feature_size"]), int(config["sampling_rate"])
        self.samples = int(config.get("chunk_length", 30)) * rate
        filters = mel_filter_bank(1 + self.n_fft // 2, bands, 0.0, 8000.0, rate, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The spectrograms, in which what is beyond a wave's length is silence."""
        waves = waves.float()
        if lengths is not None:
            waves = waves.masked_fill(~valid_frames(lengths, waves.shape[1]), 0)
        waves = nn.functional.pad(waves[:, : self.samples], (0, max(0, self.samples - waves.shape[1])))
        spectrum = torch.stft(waves, self.n_fft, self.hop, window=self.window, return_complex=True)
        energy = self.filters.T @ spectrum[..., :-1].abs().square()
        decades = energy.clamp(min=1e-10).log10()
        loudest = decades.amax((1, 2), keepdim=True)
        return (torch.maximum(decades, loudest - 8) + 4) / 4


class KaldiFrontend(ExactBuffers):
    """Kaldi's log filter bank (B, frames, bands) of waves (B, samples), normalised as for AST."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        rate, bands = int(config["sampling_rate"]), int(config.get("num_mel_bins", config.get("feature_size", 128)))
        self.size, self.hop = round(0.025 * rate), round(0.01 * rate)
        self.n_fft = 1 << (self.size - 1).bit_length()
        self.frames = int(config.get("max_length", 1024))
        self.mean, self.deviation = float(config.get("mean", 0.0)), 2 * float(config.get("std", 0.5))
        self.normalised = bool(config.get("do_normalize", True))
        filters = mel_filter_bank(
            self.n_fft // 2 + 1, bands, 20.0, rate // 2, rate, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.size, periodic=False), persistent=False)

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The filter bank; frames beyond a wave's length are zero before the normalisation."""
        short = self.size - waves.shape[1]
        waves = nn.functional.pad(waves.float(), (0, max(0, short)))
        frames = waves.unfold(1, self.size, self.hop)
        frames = frames - frames.mean(2, keepdim=True)
        before = nn.functional.pad(frames[..., :-1], (1, 0))
        before[..., 0] = frames[..., 0]
        frames = (frames - 0.97 * before) * self.window
        energy = torch.fft.rfft(frames, self.n_fft).abs().square() @ self.filters
        bank = energy.clamp(min=FLOOR).log()
        if lengths is not None:
            there = 1 + (lengths.clamp(min=self.size) - self.size) // self.hop
            bank = bank * valid_frames(there, bank.shape[1])[..., None]
        bank = nn.functional.pad(bank[:, : self.frames], (0, 0, 0, max(0, self.frames - bank.shape[1])))
        return (bank - self.mean) / self.deviation if self.normalised else bank


def frontend_of(config: Mapping[str, Any] | None, model_input: str, who: str) -> nn.Module | None:
    """What stands between waves and a model, from its feature extractor's settings; None: it reads waves.

    Raises:
        SettingError: there is no such spectrogram here.
    """
    kind = str((config or {}).get("feature_extractor_type", ""))
    if config is None or kind.startswith(("Wav2Vec2", "Hubert", "WavLM")) or not kind:
        return None
    if kind.startswith("Whisper"):
        return WhisperFrontend(config)
    if kind.startswith("AST"):
        return KaldiFrontend(config)
    if config.get("feature_size", 1) == 1 and model_input == "input_values":
        return None
    raise SettingError(f"{who}: its {kind} makes a spectrogram that is not written here (Whisper's and AST's are)")

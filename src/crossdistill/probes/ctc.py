"""Recognition of speech from frozen frames: letters by CTC, read greedily, scored by the word error rate."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.probes.metrics import word_error_rate
from crossdistill.runtime.hashing import derived_seed

Reader = Literal["linear", "mlp"]
HIDDEN, LAYERS = 256, 2
"""Units of each direction and layers of the recurrent head (SUPERB's has 1,024; it takes hours on a CPU)."""
RATES = (3e-3, 1e-3, 3e-4)
EPOCHS, BATCH, PATIENCE, CLIPPED = 60, 16, 8, 1.0
BLANK = 0


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The characters of texts; class 0 is CTC's blank."""

    letters: str

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Alphabet":
        """The characters that occur."""
        return cls("".join(sorted(set("".join(texts)))))

    def encode(self, text: str) -> Int64[Tensor, " U"]:
        """The classes of a text; characters that the training lacks are left out."""
        return torch.tensor(
            [self.letters.index(letter) + 1 for letter in text if letter in self.letters], dtype=torch.int64
        )

    def decode(self, classes: Int64[Tensor, " T"]) -> str:
        """The text of the best class of each frame: repetitions merged, then blanks removed."""
        merged = torch.unique_consecutive(classes).tolist()
        return "".join(self.letters[number - 1] for number in merged if number != BLANK)


class SpeechHead(nn.Module):
    """Log-probabilities (B, T, V) of characters from states (B, T, L, D) of `lengths` frames.

    `linear` reads each frame alone, `mlp` is a bidirectional LSTM of two layers. Layers are standardised by the
    training and summed with softmax weights.
    """

    def __init__(self, kind: Reader, mean: Float[Tensor, "L D"], deviation: Float[Tensor, "L D"], classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.layers = nn.Parameter(torch.zeros(len(mean)))
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))
        width = mean.shape[1]
        recurrent = kind == "mlp"
        self.recurrent = nn.LSTM(width, HIDDEN, LAYERS, batch_first=True, bidirectional=True) if recurrent else None
        self.last = nn.Linear(2 * HIDDEN if recurrent else width, classes)

    def forward(self, states: Float[Tensor, "B T L D"], lengths: Int64[Tensor, " B"]) -> Float[Tensor, "B T V"]:
        """The log-probabilities; those after a row's length say nothing."""
        mixed = torch.einsum("btld,l->btd", (states - self.mean) * self.scale, self.layers.softmax(0))
        if self.recurrent is not None:
            packed = nn.utils.rnn.pack_padded_sequence(mixed, lengths.cpu(), batch_first=True, enforce_sorted=False)
            mixed = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], True, total_length=states.shape[1])[0]
        return functional.log_softmax(self.last(mixed), -1)


@dataclass(frozen=True, slots=True)
class FittedSpeech:
    """A head for each seed, with the learning rate that the validation chose."""

    heads: tuple[SpeechHead, ...]
    alphabet: Alphabet
    rates: tuple[float, ...]

    def texts(self, frames: Sequence[Tensor]) -> list[list[str]]:
        """The texts of clips from their frames (T, L, D), for each seed."""
        return [_texts(head, self.alphabet, frames) for head in self.heads]


def fit_speech(
    kind: Reader,
    frames: Sequence[Tensor],
    texts: Sequence[str],
    train: Sequence[int],
    validation: Sequence[int],
    *,
    seeds: Sequence[int],
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    device: torch.device | str = "cpu",
) -> FittedSpeech:
    """Train a head for each seed and learning rate with Adam; the validation's word error rate chooses the rate.

    Of equal word error rates the one with the lower loss is kept. A head ends after 8 epochs without a better one.
    Rows whose text has more characters than frames cannot be aligned: their loss is left out.
    """
    alphabet = Alphabet.of([texts[row] for row in train])
    flat = torch.cat([frames[row] for row in train[:1000]])
    statistics = flat.mean(0), flat.std(0, correction=0)
    heads, chosen = [], []
    for seed in seeds:
        best: tuple[tuple[float, float], float, SpeechHead] | None = None
        for rate in rates:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed("probe head", seed))
                head = SpeechHead(kind, *statistics, len(alphabet.letters) + 1).to(device)
            score = _train(head, alphabet, frames, texts, train, validation, rate, epochs, seed)
            if best is None or score < best[0]:
                best = score, rate, head
        assert best is not None
        heads.append(best[2])
        chosen.append(best[1])
    return FittedSpeech(tuple(heads), alphabet, tuple(chosen))


def _train(
    head: SpeechHead,
    alphabet: Alphabet,
    frames: Sequence[Tensor],
    texts: Sequence[str],
    train: Sequence[int],
    validation: Sequence[int],
    rate: float,
    epochs: int,
    seed: int,
) -> tuple[float, float]:
    """Train one head and leave it in its best state; its word error rate and loss on the validation."""
    optimizer = torch.optim.Adam(head.parameters(), rate)
    source = torch.Generator().manual_seed(derived_seed("probe order", seed))
    best, state, waited = (float("inf"), float("inf")), copy.deepcopy(head.state_dict()), 0
    spoken = [texts[row] for row in validation]
    for _ in range(epochs):
        head.train()
        for places in torch.randperm(len(train), generator=source).split(BATCH):
            optimizer.zero_grad()
            _loss(head, alphabet, frames, texts, [train[place] for place in places.tolist()]).backward()
            nn.utils.clip_grad_norm_(head.parameters(), CLIPPED)
            optimizer.step()
        head.eval()
        with torch.no_grad():
            parts = [list(validation[i : i + BATCH]) for i in range(0, len(validation), BATCH)]
            losses = [float(_loss(head, alphabet, frames, texts, part)) * len(part) for part in parts]
        score = word_error_rate(_texts(head, alphabet, [frames[row] for row in validation]), spoken), sum(losses)
        waited = 0 if score < best else waited + 1
        if score < best:
            best, state = score, copy.deepcopy(head.state_dict())
        if waited >= PATIENCE:
            break
    head.load_state_dict(state)
    head.eval()
    return best


def _loss(
    head: SpeechHead, alphabet: Alphabet, frames: Sequence[Tensor], texts: Sequence[str], rows: Sequence[int]
) -> Tensor:
    states, lengths = _padded([frames[row] for row in rows], head.mean.device)
    wanted = [alphabet.encode(texts[row]) for row in rows]
    return functional.ctc_loss(
        head(states, lengths).transpose(0, 1),
        torch.cat(wanted).to(states.device),
        lengths.cpu(),
        torch.tensor([len(classes) for classes in wanted]),
        blank=BLANK,
        zero_infinity=True,
    )


@torch.no_grad()
def _texts(head: SpeechHead, alphabet: Alphabet, frames: Sequence[Tensor]) -> list[str]:
    texts = []
    for start in range(0, len(frames), BATCH):
        states, lengths = _padded(frames[start : start + BATCH], head.mean.device)
        best = head(states, lengths).argmax(-1).cpu()
        texts += [alphabet.decode(row[:length]) for row, length in zip(best, lengths.tolist(), strict=True)]
    return texts


def _padded(frames: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(states) for states in frames])
    return nn.utils.rnn.pad_sequence(list(frames), batch_first=True).to(device), lengths

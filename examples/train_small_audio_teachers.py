"""Train a small HuBERT or WavLM on the clips of one domain, as a teacher where no published one can be downloaded.

python examples/train_small_audio_teachers.py MANIFEST OUT --domain speech [--labels digit,emotion] [--kind hubert]
crossdistill run speech-music/translate --set data.manifest=MANIFEST --set teachers.speech=transformers:OUT ...

MANIFEST is a table as `crossdistill audio manifest` writes it. Rows of the domain whose `split` is train are used, or
all if there is no such column. The network predicts the k-means cluster of log-mel frames that are masked, as HuBERT in
its first iteration (arXiv 2106.07447), and, for each column that --labels names, the label of the clip from the mean of
its frames. OUT becomes a folder of transformers: config.json, model.safetensors, preprocessor_config.json, and also
the list `trained_on.txt`. Accuracies on rows of split validation are printed. Needs crossdistill[transformers,audio].
"""

import argparse
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from crossdistill.backends.sound_frames import by_row, conv_frames, mean_of_frames
from crossdistill.data.audio.any_sound import decode_sound
from crossdistill.data.audio.sound import MelSettings, log_mel
from crossdistill.data.audio.sound_file import resample
from crossdistill.data.table_file import read_table

RATE, HOP, FIELD = 16_000, 320, 400
"""Hertz; samples from frame to frame, and those that a frame of HuBERT reads."""
MEL = MelSettings(RATE, n_fft=1024, hop=HOP, bands=64)
KINDS = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}
MASKED, SPAN, WHOLE = 0.4, 5, 0.5
"""Share of the frames that are masked, length of a span of them, and share of clips in training without any."""


@dataclass
class Clips:
    """Waves at 16 kHz, the cluster of each of their frames, and the number of each label (-1: none)."""

    waves: list[Tensor]
    clusters: list[Tensor]
    labels: dict[str, Tensor]

    def batch(self, rows: list[int], seconds: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """A random part of each clip, padded, with its attention mask; lengths; clusters (-1 beyond the end)."""
        waves, clusters = [], []
        for row in rows:
            wave = self.waves[row]
            spare = max(0, len(wave) - int(seconds * RATE)) // HOP
            first = int(torch.randint(0, spare + 1, ()))
            waves.append(wave[first * HOP :][: int(seconds * RATE)])
            clusters.append(self.clusters[row][first:])
        lengths = torch.tensor([len(wave) for wave in waves])
        frames = _frames(lengths)
        given = {
            "input_values": nn.utils.rnn.pad_sequence(waves, batch_first=True),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        }
        kept = [one[:count] for one, count in zip(clusters, frames.tolist(), strict=True)]
        return given, frames, nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=-1)


class Heads(nn.Module):
    """Predicts the clusters of frames, and the labels of clips from the mean of their frames."""

    def __init__(self, width: int, clusters: int, labels: dict[str, int]) -> None:
        super().__init__()
        self.frame = nn.Linear(width, clusters)
        self.clip = nn.ModuleDict({name: nn.Linear(width, count) for name, count in labels.items()})


def read(manifest: Path, domain: str, columns: list[str], split: str) -> list[dict[str, Any]]:
    """The rows of a domain and a split; without a column `split`, all are of the split train."""
    table = read_table(manifest, "utf-8", None).columns
    missing = [name for name in ("path", "domain", *columns) if name not in table]
    if missing:
        raise SystemExit(f"{manifest}: there is no column {missing[0]!r}; it has {', '.join(table)}")
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    found = [row for row in rows if row["domain"] == domain and row.get("split", "train") == split]
    if split == "train" and not found:
        raise SystemExit(f"{manifest}: no row of split train is of the domain {domain!r}")
    return found


def decoded(path: Path) -> Tensor:
    """A recording at 16 kHz, at least 0.1 s long."""
    wave = torch.from_numpy(resample(*decode_sound(path), RATE))
    return functional.pad(wave, (0, max(0, RATE // 10 - len(wave))))


def mel_frames(wave: Tensor) -> Tensor:
    """Log-mel frames (T, 64), each centred on the samples that one frame of the network reads."""
    return log_mel(wave[FIELD // 2 :], MEL).T[: int(_frames(torch.tensor([len(wave)])))]


def k_means(points: Tensor, count: int, rounds: int = 15) -> Tensor:
    """Centres (count, D) by Lloyd's algorithm from random points; a centre without points stays where it is."""
    centres = points[torch.randperm(len(points))[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def clustered(frames: list[Tensor], known: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """The cluster of each frame, by the mean, the deviation and the centres of the training frames."""
    mean, deviation, centres = known
    return [torch.cdist((one - mean) / deviation, centres).argmin(1) for one in frames]


def masks(frames: Tensor) -> Tensor:
    """Spans of frames (B, T) to mask: about MASKED of each row, one span at least."""
    chosen = torch.zeros(len(frames), int(frames.max()), dtype=torch.bool)
    for row, count in enumerate(frames.tolist()):
        starts = torch.randint(0, max(1, count - SPAN + 1), (max(1, round(MASKED * count / SPAN)),))
        for start in starts.tolist():
            chosen[row, start : min(start + SPAN, count)] = True
    return chosen


def encoder(kind: str, width: int, layers: int, channels: int) -> Any:
    """A network whose first blocks a `hubert-student-2` of this width and these channels can copy."""
    config, model = KINDS[kind]
    return model(
        config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=4 * width,
            conv_dim=(channels,) * 7,
            layerdrop=0.0,
        )
    )


def train(model: Any, heads: Heads, clips: Clips, steps: int, batch: int, rate: float, seconds: float) -> None:
    """Masked prediction of clusters plus the labels; few clips of a kind are drawn more often."""
    which = list(zip(*((one >= 0).tolist() for one in clips.labels.values()), strict=True)) or [()] * len(clips.waves)
    sizes = Counter(which)
    weights = torch.tensor([sizes[one] ** -0.5 for one in which])
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    began, total = time.monotonic(), 0.0
    model.train()
    for step in range(1, steps + 1):
        rows = torch.multinomial(weights, batch, replacement=True)
        given, frames, clusters = clips.batch(rows.tolist(), seconds)
        hidden = masks(frames)
        hidden[(torch.rand(batch) < WHOLE) & (torch.arange(batch) > 0)] = False
        states = _states(model, given, mask_time_indices=hidden)
        loss = functional.cross_entropy(heads.frame(states[hidden]), clusters[hidden])
        pooled = mean_of_frames(states, frames)
        for name, head in heads.clip.items():
            wanted = clips.labels[name][rows]
            if bool((wanted >= 0).any()):
                loss = loss + functional.cross_entropy(head(pooled), wanted, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 50 == 0 or step == steps:
            print(f"step {step}: loss {total / (step % 50 or 50):.3f}, {time.monotonic() - began:.0f} s", flush=True)
            total = 0.0


@torch.no_grad()
def accuracies(model: Any, heads: Heads, clips: Clips, seconds: float) -> dict[str, float]:
    """Accuracy of each label, and of the clusters of masked frames, over clips of which some have the label."""
    model.eval()
    right, seen = Counter[str](), Counter[str]()
    for part in torch.arange(len(clips.waves)).split(16):
        given, frames, clusters = clips.batch(part.tolist(), seconds)
        hidden = masks(frames)
        found = heads.frame(_states(model, given, mask_time_indices=hidden)[hidden]).argmax(1)
        pooled = mean_of_frames(_states(model, given), frames)
        pairs = {"masked clusters": (found, clusters[hidden])}
        pairs |= {name: (head(pooled).argmax(1), clips.labels[name][part]) for name, head in heads.clip.items()}
        for name, (predicted, wanted) in pairs.items():
            right[name] += int((predicted == wanted)[wanted >= 0].sum())
            seen[name] += int((wanted >= 0).sum())
    return {name: right[name] / count for name, count in seen.items() if count}


def save(model: Any, out: Path, files: list[str]) -> None:
    """Write the folder."""
    model.save_pretrained(out)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False, return_attention_mask=True).save_pretrained(out)
    (out / "trained_on.txt").write_text("".join(f"{path}\n" for path in files))


def main() -> None:
    """Read, cluster, train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--domain", default="speech")
    parser.add_argument("--labels", default="", help="columns with labels of clips, as digit,emotion")
    parser.add_argument("--kind", choices=tuple(KINDS), default="hubert")
    sizes = {"steps": 400, "batch": 24, "width": 128, "layers": 4, "channels": 32, "clusters": 100, "seed": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in {"rate": 1.5e-3, "seconds": 0.8}.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    given = parser.parse_args()
    if given.width % 64:
        parser.error(f"--width: wanted a multiple of 64, found {given.width}")
    # WavLM of transformers gives its attention a mask of padding beside numbers for positions.
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
    torch.manual_seed(given.seed)
    columns = [name for name in given.labels.split(",") if name]
    rows = {split: read(given.manifest, given.domain, columns, split) for split in ("train", "validation")}
    waves = {split: [decoded(given.manifest.parent / row["path"]) for row in own] for split, own in rows.items()}
    frames = {split: [mel_frames(wave) for wave in own] for split, own in waves.items()}
    points = torch.cat(frames["train"])
    points = points[torch.randperm(len(points))[:20_000]]
    mean, deviation = points.mean(0), points.std(0).clamp(min=1e-6)
    known = (mean, deviation, k_means((points - mean) / deviation, given.clusters))
    names = {name: sorted({row[name] for row in rows["train"] if row[name] is not None}) for name in columns}
    clips = {}
    for split, own in rows.items():
        labels = {name: _numbers(own, name, names) for name in names}
        clips[split] = Clips(waves[split], clustered(frames[split], known), labels)
    model = encoder(given.kind, given.width, given.layers, given.channels)
    heads = Heads(given.width, given.clusters, {name: len(own) for name, own in names.items()})
    classes = ", ".join(f"{len(own)} of {name}" for name, own in names.items()) or "none"
    seconds = sum(map(len, waves["train"])) / RATE
    print(f"{len(rows['train']):,} clips, {seconds:,.0f} s; labels: {classes}; {model.num_parameters():,} weights")
    train(model, heads, clips["train"], given.steps, given.batch, given.rate, given.seconds)
    for name, value in accuracies(model, heads, clips["validation"], given.seconds).items():
        print(f"{name}: {value:.3f} on {len(rows['validation'])} clips of split validation")
    save(model, given.out, [str(row["path"]) for row in rows["train"]])


def _frames(lengths: Tensor) -> Tensor:
    return conv_frames(lengths, HubertConfig().conv_kernel, HubertConfig().conv_stride)


def _states(model: Any, given: dict[str, Tensor], **masked: Tensor) -> Tensor:
    """The last layer's frames; of a padded batch each row's as from its clip alone."""
    with by_row(model, given["attention_mask"].sum(1)):
        states: Tensor = model(**given, **masked).last_hidden_state
    return states


def _numbers(rows: list[dict[str, Any]], column: str, names: dict[str, list[Any]]) -> Tensor:
    known = {label: number for number, label in enumerate(names[column])}
    return torch.tensor([known.get(row[column], -1) for row in rows])


if __name__ == "__main__":
    main()

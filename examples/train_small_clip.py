"""Train a small CLIP on one half of a folder's pictures, with captions made of the names of their folders.

python examples/train_small_clip.py PICTURES OUT [--epochs 30] [--side 32]
crossdistill run folder/kd --set data.path=PICTURES --set teachers.clip=transformers:OUT

PICTURES has a folder for each class, or such folders in `train` (read) and `test` (used for the printed accuracy). OUT
becomes a folder as transformers writes it: a CLIPModel, its tokenizer, the preparation of pictures, and the list
`trained_on.txt` of that half. Captions of class names alone carry no more than labels: this stands in for a published
CLIP where none can be downloaded, and does not replace one. Needs crossdistill[transformers,image].
"""

import argparse
import json
import re
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from crossdistill.backends.prompts import TEMPLATES, ZeroShot

CAPTIONS = ZeroShot(templates=(*TEMPLATES, "{}", "a {}", "this is a {}", "there is a {} here"))
MEAN, DEVIATION = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures in a folder of class folders, sorted, and the names of the classes."""
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{folder}: wanted a folder for each class with pictures; found none")
    return files, sorted({path.parent.name for path in files})


def pictures(files: list[Path], side: int) -> Tensor:
    """Pictures as bytes (N, 3, side, side): the middle of each, resized so that its shorter side fits."""
    rows = []
    for path in files:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        scale = side / min(picture.size)
        picture = picture.resize((max(side, int(picture.width * scale)), max(side, int(picture.height * scale))), 3)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        part = picture.crop((left, top, left + side, top + side))
        rows.append(torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1))
    return torch.stack(rows)


def prepared(rows: Tensor) -> Tensor:
    """Bytes as the model reads them."""
    return (rows.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def varied(rows: Tensor) -> Tensor:
    """Each picture mirrored or not, and all moved by the same up to an eighth of their side."""
    rows = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, rows.flip(3), rows)
    most = rows.shape[-1] // 8
    padded = nn.functional.pad(rows, (most,) * 4)
    top, left = (int(torch.randint(0, 2 * most + 1, ())) for _ in range(2))
    return padded[..., top : top + rows.shape[-2], left : left + rows.shape[-1]]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token for each word of these texts."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[BOS]", "[EOS]", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, [("[BOS]", 2), ("[EOS]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **special)


def small_clip(words: int, side: int, width: int, layers: int) -> CLIPModel:
    """A CLIPModel whose text side is half as deep as its picture side."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    ids = {"vocab_size": words, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 32}
    return CLIPModel(
        CLIPConfig(
            text_config={**sizes, **ids, "num_hidden_layers": max(1, layers // 2)},
            vision_config={**sizes, "image_size": side, "patch_size": side // 8, "num_hidden_layers": layers},
            projection_dim=width,
        )
    )


def train(model: CLIPModel, rows: Tensor, labels: Tensor, tokens: Tensor, epochs: int, batch: int, rate: float) -> None:
    """CLIP's two cross-entropies; captions of a class are right for all of its pictures (UniCL, arXiv 2204.03610).

    `tokens` (T, C, L) are the captions of each template and class.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    steps = epochs * max(1, len(rows) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        for part in torch.randperm(len(rows)).split(batch)[: max(1, len(rows) // batch)]:
            # Each picture has one of the captions of its class; equal captions are encoded once.
            some = tokens[torch.randperm(len(tokens))[:2]]
            texts = some.flatten(0, 1).to(device)
            own = torch.randint(len(some), (len(part),)) * some.shape[1] + labels[part]
            pixels = prepared(varied(rows[part])).to(device)
            found = model(input_ids=texts, attention_mask=(texts != 0).long(), pixel_values=pixels).logits_per_image
            found = found[:, own.to(device)]
            alike = (labels[part][:, None] == labels[part]).float().to(device)
            right = alike / alike.sum(1, keepdim=True)
            loss = (nn.functional.cross_entropy(found, right) + nn.functional.cross_entropy(found.T, right)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(part) / len(rows)
        print(f"epoch {epoch + 1}: loss {total:.3f}", flush=True)


@torch.no_grad()
def accuracy(model: CLIPModel, rows: Tensor, labels: Tensor, tokens: Tensor) -> float:
    """Zero-shot accuracy with the captions (C, L) of one template."""
    device, right = next(model.parameters()).device, 0
    for part, wanted in zip(rows.split(500), labels.split(500), strict=True):
        texts = tokens.to(device)
        found = model(
            input_ids=texts, attention_mask=(texts != 0).long(), pixel_values=prepared(part).to(device)
        ).logits_per_image
        right += int((found.argmax(1).cpu() == wanted).sum())
    return right / len(rows)


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, side: int, files: list[Path], out: Path) -> None:
    """Write the folder."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 3}
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "rescale_factor": 1 / 255}
    values = {"image_processor_type": "CLIPImageProcessor", "image_mean": MEAN, "image_std": DEVIATION}
    (out / "preprocessor_config.json").write_text(json.dumps({**settings, **sizes, **values}, indent=1))
    (out / "trained_on.txt").write_text("".join(f"{path}\n" for path in files))


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", type=int, choices=(0, 1), default=0, help="even or odd pictures, in sorted order")
    for name, default in {"epochs": 30, "side": 32, "width": 96, "layers": 4, "batch": 128, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3)
    given = parser.parse_args()
    if given.side % 8:
        parser.error(f"--side: wanted a multiple of 8, found {given.side}")
    torch.manual_seed(given.seed)
    inside = given.pictures / "train" if (given.pictures / "train").is_dir() else given.pictures
    files, classes = files_of(inside)
    half, rest = files[given.half :: 2], files[1 - given.half :: 2]
    captions = CAPTIONS.prompts(classes)
    tokenizer = tokenizer_of(list(chain(*captions)))
    every = tokenizer(list(chain(*captions)), padding=True, truncation=True, max_length=32, return_tensors="pt")
    tokens = every["input_ids"].view(len(captions), len(classes), -1)
    model = small_clip(len(tokenizer), given.side, given.width, given.layers)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{len(half)} of {len(files)} pictures, {len(classes)} classes, {model.num_parameters():,} weights", flush=True
    )
    rows, labels = pictures(half, given.side), _labels(half, classes)
    train(model, rows, labels, tokens, given.epochs, given.batch, given.rate)
    test = files_of(given.pictures / "test")[0] if (given.pictures / "test").is_dir() else rest
    reached = accuracy(model.eval(), pictures(test, given.side), _labels(test, classes), tokens[0])
    print(f"zero-shot accuracy on {len(test)} other pictures: {reached:.3f}, chance {1 / len(classes):.3f}")
    save(model.cpu(), tokenizer, given.side, half, given.out)


def _labels(files: list[Path], classes: list[str]) -> Tensor:
    return torch.tensor([classes.index(path.parent.name) for path in files])


if __name__ == "__main__":
    main()

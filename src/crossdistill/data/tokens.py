"""Tokenizers from a `tokenizer.json` (package tokenizers): a data file, so no code of a model's folder is run."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.errors import DataError, MissingExtraError
from crossdistill.runtime.files import file_fault

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
MOST_BYTES = 2**28


@dataclass(frozen=True)
class Tokens:
    """A tokenizer: its content, the hash of it, the id of padding, and its number of ids."""

    tokenizer: Any
    content: bytes
    pad: int

    @property
    def digest(self) -> str:
        """SHA-256 of the content, as hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self.tokenizer.get_vocab_size())

    def ids(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """The ids of each text, at most `length`, special tokens included."""
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length)
        return [list(encoding.ids) for encoding in self.tokenizer.encode_batch(list(texts))]


def read_tokenizer(path: Path) -> Tokens:
    """The tokenizer in a folder, or in a file `tokenizer.json`.

    Raises:
        DataError: there is none, or it is damaged; names it.
        MissingExtraError: the package tokenizers is not installed.
    """
    file = path / FILE if path.is_dir() else path
    fault = file_fault(file)
    if fault is not None:
        raise DataError(
            f"{file}: {fault}; a tokenizer is a folder with {FILE}: tokenizer.save_pretrained(FOLDER) of a fast "
            "tokenizer of transformers writes one"
        )
    if file.stat().st_size > MOST_BYTES:
        raise DataError(f"{file}: {file.stat().st_size:,} bytes; at most {MOST_BYTES:,}")
    return parse_tokenizer(file.read_bytes(), str(file), _pad_token(file.parent / CONFIG))


def parse_tokenizer(content: bytes, who: str, pad_token: str | None = None) -> Tokens:
    """The tokenizer that the content of a `tokenizer.json` describes; `who` begins the text of an error.

    Raises:
        DataError: it is damaged.
        MissingExtraError: the package tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("reading texts by a tokenizer", "tokenizers", "text") from error
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the parser raises plain exceptions
        raise DataError(f"{who}: not a readable tokenizer: {' '.join(str(error).split())[:200]}") from error
    padding = tokenizer.padding or {}
    pad = padding.get("pad_id") if pad_token is None else tokenizer.token_to_id(pad_token)
    return Tokens(tokenizer, content, int(pad or 0))


def _pad_token(config: Path) -> str | None:
    """The text of the padding token that Transformers notes beside a tokenizer; None: not noted."""
    try:
        token = json.loads(config.read_text(encoding="utf-8")).get("pad_token")
    except (OSError, ValueError, AttributeError):
        return None
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None

"""Tokenizers: train a byte-level BPE, fingerprint one, and copy one into a store or checkpoint.

A tokenizer here is a folder that `transformers.AutoTokenizer` loads (with a `tokenizer.json`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.trainer.config import JobError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


END_OF_TEXT = "<|endoftext|>"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# what decides which ids a text becomes; templates, truncation and decoding do not
_IDENTITY = ("model", "added_tokens", "normalizer", "pre_tokenizer")


@dataclass(frozen=True)
class TokenizerInfo:
    """What a store and a model need to know of a tokenizer (`vocab_size` counts added tokens)."""

    fingerprint: str
    vocab_size: int
    eos_token: str
    eos_id: int


def train_tokenizer(texts: Iterable[str], out: Path, vocab_size: int) -> Path:
    """Train a byte-level BPE (GPT-2's scheme) and write it to the folder `out`.

    Args:
        texts: documents; iterated once.
        out: folder to write, created if absent.
        vocab_size: ids in all, the end-of-text token and the 256 bytes included.

    Raises:
        ValueError: a vocabulary too small for the bytes, or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and {END_OF_TEXT}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    some = False

    def noted() -> Iterable[str]:
        nonlocal some
        for text in texts:
            some = some or bool(text)
            yield text

    tokenizer.train_from_iterator(noted(), trainer=trainer)
    if not some:
        raise ValueError("no text to train a tokenizer on")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return out


def resolve_tokenizer(name: str, scratch: Path) -> Path:
    """A local tokenizer folder for `name`: itself, or the hub's saved into `scratch`.

    Raises:
        ValueError: neither a folder with a tokenizer.json nor a loadable hub name.
    """
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")):
        raise ValueError(f"tokenizer {name}: no tokenizer.json there")
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(name).save_pretrained(scratch)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"tokenizer {name}: neither a folder nor a hub name: {first}") from error
    if not (scratch / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer {name}: only fast tokenizers (tokenizer.json) are supported")
    return scratch


def load_raw(folder: Path) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a folder, without truncation or padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def inspect_tokenizer(folder: Path) -> TokenizerInfo:
    """Fingerprint, size and end-of-text token of a tokenizer folder.

    Raises:
        JobError: no tokenizer there, or none with an end-of-text token.
    """
    try:
        raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        tokenizer = load_raw(folder)
    except (OSError, ValueError) as error:
        raise JobError(f"tokenizer {folder}: no readable tokenizer.json: {error}") from error
    identity = {key: raw.get(key) for key in _IDENTITY}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    eos = _eos_token(folder)
    eos_id = tokenizer.token_to_id(eos) if eos else None
    if eos is None or eos_id is None:
        raise JobError(f"tokenizer {folder}: no eos_token in tokenizer_config.json, or unknown id")
    return TokenizerInfo(f"sha256:{digest}", tokenizer.get_vocab_size(), eos, eos_id)


def _eos_token(folder: Path) -> str | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            value = json.loads((folder / name).read_text("utf-8")).get("eos_token")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return None


def copy_tokenizer(source: Path, target: Path) -> list[Path]:
    """Copy a tokenizer's files from folder to folder; returns the files written."""
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in _FILES if (source / name).is_file()]
    return [Path(shutil.copyfile(source / name, target / name)) for name in names]

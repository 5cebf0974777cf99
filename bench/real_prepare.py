"""What `bench/real.py` trains and asks: items split, texts harvested, vocabulary, token stores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import real_items
import real_texts
from real_arms import SEQUENCE, VOCABULARY

Json = dict[str, Any]

SEED = 20  # of items' split and texts; not the runs' seeds
HEAD = 500_000  # characters of each source that the vocabulary is learnt from
SHARDS = 16
MARK = "prepared.json"


def prepare(work: Path, data: Path | None) -> Json:
    """Make everything runs share, or read what an earlier call made.

    Returns:
        ``unique`` (tokens by source), ``flat`` (those of the shards), ``items`` (counts by side and
        benchmark) and ``texts`` (documents, bytes and dropped documents by source).

    Raises:
        ValueError: too few sources can be made on this machine.
    """
    mark = work / MARK
    if mark.exists():
        found: Json = json.loads(mark.read_text())
        return found
    items = real_items.read_items(data)
    counts = real_items.write_items(items, work / "items", SEED)
    worked = real_items.worked_problems(data)
    texts = real_texts.harvest(work / "text", real_items.held_out(items), worked, SEED)
    real_texts.deal(work / "text", work / "flat-text", SHARDS, SEED)
    tokenizer = _vocabulary(work, list(texts))
    found = {
        "unique": _stores(work / "text", work / "stores", tokenizer),
        "flat": _stores(work / "flat-text", work / "stores", tokenizer),
        "items": counts,
        "texts": texts,
    }
    mark.write_text(json.dumps(found, indent=1))
    return found


def _vocabulary(work: Path, names: list[str]) -> Path:
    from mixloop.trainer.sources import train_tokenizer

    plain = [name for name in names if name not in real_texts.ENCODED]
    heads = (text for n in plain for text in real_texts.head(work / "text" / f"{n}.jsonl", HEAD))
    return Path(train_tokenizer(heads, work / "tokenizer", VOCABULARY))


def _stores(texts: Path, stores: Path, tokenizer: Path) -> dict[str, int]:
    """A token store of every text; returns the tokens of whole windows."""
    from mixloop.trainer.prepare import prepare as tokenise

    unique = {}
    for path in sorted(texts.glob("*.jsonl")):
        info = tokenise([str(path)], stores / path.stem, str(tokenizer), overwrite=True)
        unique[path.stem] = info.tokens // SEQUENCE * SEQUENCE
    return unique


def initial_model(folder: Path, tokenizer: Path, model: Mapping[str, int], seed: int) -> Path:
    """A model that isn't trained yet, for twins that begin alike and see data in another order."""
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=True,
        **dict(model),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def describe(found: Json) -> Iterator[str]:
    """A line for each source, and one for the items."""
    total = sum(found["unique"].values())
    for name, tokens in found["unique"].items():
        text = found["texts"][name]
        yield (
            f"{name:14} {tokens:>9,} tokens ({tokens / total:.1%}), {text['documents']:,} documents"
            f", {text['overlapping']} dropped that overlap an item"
        )
    for side, counts in found["items"].items():
        yield f"{side}: " + ", ".join(f"{count} {name}" for name, count in counts.items())

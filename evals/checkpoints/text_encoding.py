"""The checkpoint's tokenizer, and what of it goes into a text: its own tokens and no others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mixloop.common.files import read_whole
from mixloop.common.tokenizing import (
    TOKENIZER_FILE,
    TokenProbe,
    exact_config,
    read_probe,
    read_tokenizer_file,
    special_as_text,
    special_tokens,
    take_probe,
)

Encode = Callable[[str], list[int]]
"""A text's ids and nothing else: no template of the tokenizer adds any."""

# of tokenizers that transformers converts
_OTHER_FILES = (
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint's folder carries a tokenizer of its own, sound or not."""
    return any((folder / name).is_file() for name in (TOKENIZER_FILE, *_OTHER_FILES))


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a checkpoint's folder; no code from the checkpoint is run.

    A `tokenizer.json` is taken as it is, whatever class the folder names; what has none is read
    by transformers.

    Raises:
        OSError: there is none, or it can't be read.
        ValueError: it is damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (folder / TOKENIZER_FILE).is_file():
        if not has_tokenizer(folder):
            raise FileNotFoundError(
                f"no {TOKENIZER_FILE}: save it with the model (loader.save_tokenizer(folder), "
                "or the files of the store's tokenizer/ folder, as they are)"
            )
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    raw = read_tokenizer_file(folder)
    options = exact_config(folder, raw)
    del options["tokenizer_class"]
    template = folder / "chat_template.jinja"
    if template.is_file():
        options["chat_template"] = read_whole(template, follow=True).decode()
    return PreTrainedTokenizerFast(tokenizer_object=raw, **options)


def why_not_of_model(tokenizer: Any, config: Any) -> str | None:
    """Why a tokenizer can't be that of a model, or None: plain text makes ids the model lacks.

    Tokens that were added may lie beyond; a text that holds none needs no row for them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if backend is None or not isinstance(rows, int):
        return None
    highest = max(backend.get_vocab(with_added_tokens=False).values(), default=0)
    if highest < rows:
        return None
    return f"its tokenizer has ids up to {highest}, its model {rows} of them: one is another's"


def why_not_trained_with(encode: Encode, folder: Path, trained: TokenProbe | None) -> str | None:
    """Why a checkpoint's model can't have been trained on this tokenizer's ids, or None.

    Args:
        encode: As texts are read for it.
        folder: The checkpoint's; a probe may be recorded there.
        trained: The probe of the tokenizer that made the training data; None: not known.
    """
    recorded = read_probe(folder)
    if recorded is None and trained is None:
        return None
    mine = take_probe(encode)
    for probe, whose in ((recorded, "recorded in the checkpoint"), (trained, "of the run's data")):
        difference = None if probe is None else mine.difference(probe)
        if difference is not None:
            return (
                "its tokenizer is not the one that the training data was tokenised with "
                f"(by the ids {whose}): {difference}; save the data's with each checkpoint "
                "(loader.save_tokenizer(folder), or the files of the store's tokenizer/ folder, as "
                "they are)"
            )
    return None


def text_encoder(tokenizer: Any, folder: Path, known: TokenProbe | None) -> Encode:
    """What makes the ids of a text that training had.

    Special tokens that are written in a text are text unless `prepare` was told to parse them.

    Args:
        tokenizer: Of the checkpoint, as it was read.
        folder: Its own.
        known: How the training data was tokenised; None: as lm-eval's `hf` model would.
    """
    if known is None:
        return own_encoder(tokenizer)
    if not (folder / TOKENIZER_FILE).is_file():
        options = {"split_special_tokens": not known.parses_special}
        return partial(tokenizer.encode, add_special_tokens=False, **options)
    # what transformers adds to a tokenizer, such as an end-of-text token that was but a word, is
    # not in the file
    raw = read_tokenizer_file(folder)
    if not known.parses_special:
        raw = special_as_text(raw, special_tokens(folder, raw).values())
    return lambda text: list(raw.encode(text, add_special_tokens=False).ids)


def own_encoder(tokenizer: Any) -> Encode:
    """A tokenizer of transformers as it is, without its template."""
    return partial(tokenizer.encode, add_special_tokens=False)

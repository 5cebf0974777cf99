"""`tokenizer.json` taken as it is.

transformers' `AutoTokenizer` builds a tokenizer anew from the vocabulary by the class that
`tokenizer_config.json` or the model names, and that class brings a pre-tokenizer of its own: other
ids than the file's. Training, evaluation and checkpoints all go through here instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import one_line
from mixloop.common.files import LARGEST_JSON, read_json, read_whole

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# what transformers may know of a tokenizer without making other ids of a text
_HARMLESS = (
    "chat_template",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "truncation_side",
)


def read_tokenizer_file(folder: Path) -> Tokenizer:
    """The tokenizer of a folder's `tokenizer.json`: nothing is cut, padded or left to chance.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds no tokenizer; one line.
    """
    from tokenizers import Tokenizer

    text = read_whole(folder / TOKENIZER_FILE, LARGEST_JSON, follow=True)
    try:
        tokenizer = Tokenizer.from_buffer(text)
    # the library raises bare exceptions
    except Exception as error:
        raise ValueError(f"{TOKENIZER_FILE} holds no tokenizer: {one_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def special_tokens(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a folder names, such as `eos_token`, as far as they have an id.

    One without an id would be given the next free one, for which no model has an embedding.
    """
    named: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _json(folder / file)
        for name in _NAMED:
            value = content.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str) and tokenizer.token_to_id(value) is not None:
                named[name] = value
    return named


def exact_config(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """A `tokenizer_config.json` by whose class transformers takes the folder's file as it is."""
    content = _json(folder / "tokenizer_config.json")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens(folder, tokenizer),
        **{name: content[name] for name in _HARMLESS if name in content},
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file, LARGEST_JSON, follow=True)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

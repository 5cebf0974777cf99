"""Text is text: special tokens that are written in it, and half surrogates, which say nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MARK = re.compile(r"<.+>|\[.+\]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> tuple[str, int]:
    """A text with U+FFFD for half surrogates, which are no characters, and how many it had."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.subn("\ufffd", text)
    return text, 0


def special_as_text(tokenizer: Tokenizer, named: Iterable[str]) -> Tokenizer:
    """A tokenizer that makes no control ids of a text. The one that is given is changed.

    Control ids are those of added tokens that `tokenizer.json` calls special or that the
    configuration names. Some vocabularies (Unigram, WordLevel) have their special tokens among the
    words; there they get names that no text contains.
    """
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special}
    words = {token.content for token in added.values()}
    # a newline may be the end of a text by name, and stays a newline
    special.update(token for token in named if token in words or _MARK.fullmatch(token))
    tokenizer.add_special_tokens(sorted(special))  # all have ids: only now they count as special
    tokenizer.encode_special_tokens = True
    content = json.loads(tokenizer.to_str())
    unknown = unknown_id(content["model"], tokenizer)
    # what bytes are written as is told apart by the model itself
    bytes_ = {f"<0x{byte:02X}>" for byte in range(256) if content["model"].get("byte_fallback")}
    found = {}
    for token in special - bytes_:
        own = tokenizer.token_to_id(token)
        if own != unknown and own in tokenizer.encode(token, add_special_tokens=False).ids:
            found[token] = f"\ufdd0{token}\ufdd1"  # noncharacters
    if not found:
        return tokenizer
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {found.get(token, token): at for token, at in model["vocab"].items()}
    else:
        model["vocab"] = [[found.get(token, token), score] for token, score in model["vocab"]]
    for token in content["added_tokens"]:
        token["content"] = found.get(token["content"], token["content"])
    changed = type(tokenizer).from_str(json.dumps(content))
    changed.encode_special_tokens = True
    return changed


def unknown_id(model: dict[str, Any], tokenizer: Tokenizer) -> int:
    """The id of what the vocabulary lacks; -1: it has none."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    found = tokenizer.token_to_id(token) if token else None
    return -1 if found is None else found

"""A tokenizer as `prepare` uses it: text is text, and what the vocabulary lacks is counted.

What a tokenizer adds of its own (templates with BOS or EOS) is left out: `prepare` puts ids around
documents itself, as it is told to.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixloop.common.tokenizing import special_tokens
from mixloop.trainer.sources import load_raw

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_MARK = re.compile(r"<.+>|\[.+\]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 10  # unknown characters that are named


@dataclass
class Changes:
    """What of some texts their tokens don't say, in characters, and marks that became ids."""

    surrogates: int = 0
    unknown: int = 0
    which: set[str] = field(default_factory=set)
    marks: int = 0
    which_marks: set[str] = field(default_factory=set)


class Spans(NamedTuple):
    """Tokens with their places in the text: ids, first character, and the one behind the last."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    def within(self, begin: int, end: int) -> Spans:
        """Those that begin at a character from `begin` on and before `end`."""
        here = (self.starts >= begin) & (self.starts < end)
        return Spans(self.ids[here], self.starts[here], self.ends[here])


class TextEncoder:
    """Text to ids, the same in every process.

    Args:
        folder: of the tokenizer.
        parse_special: special tokens that are written in a text become their ids. Without it they
            are text like any other: a page about tokenizers ends no document.
    """

    def __init__(self, folder: Path, parse_special: bool = False) -> None:
        tokenizer = load_raw(folder)
        tokenizer.post_processor = None  # it would trim the places of tokens
        named = set(special_tokens(folder, tokenizer).values())
        added = tokenizer.get_added_tokens_decoder().items()
        if not parse_special:
            tokenizer = _special_as_text(tokenizer, named)
        self._tokenizer = tokenizer
        facts = json.loads(tokenizer.to_str())
        self._unknown = _unknown_id(facts["model"], tokenizer)
        self._byte_level = _is_byte_level(facts)
        self._words = _words(facts)
        self.complete = _has_every_byte(facts)
        """Whether it has ids for any text whatever."""
        self._known: dict[str, bool] = {}
        self._marks = {
            at: token.content
            for at, token in added
            if not (parse_special or token.special or token.content in named)
            and _MARK.fullmatch(token.content)
        }

    def count_marks(self, ids: npt.NDArray[Any], changes: Changes) -> None:
        """Count marks that the tokenizer doesn't call special, such as `<think>` for many."""
        if not self._marks:
            return
        found = ids[np.isin(ids, list(self._marks))]
        changes.marks += len(found)
        changes.which_marks |= {self._marks[int(at)] for at in np.unique(found)[:_SHOWN]}

    def encode(self, texts: Sequence[str], changes: Changes) -> list[list[int]]:
        """Ids of whole texts."""
        clean = [_without_surrogates(text, changes) for text in texts]
        if self.complete:
            encoded = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
            return [one.ids for one in encoded]
        encoded = self._tokenizer.encode_batch(clean, add_special_tokens=False)
        for text, one in zip(clean, encoded, strict=True):
            self._count_unknown(text, _spans(one), changes)
        return [one.ids for one in encoded]

    def encode_window(self, text: str, changes: Changes, counted: slice) -> Spans:
        """Ids of a stretch of a text with their places; changes are counted within `counted`."""
        inside = Changes()
        clean = _without_surrogates(text, inside)
        found = _spans(self._tokenizer.encode(clean, add_special_tokens=False))
        changes.surrogates += len(_SURROGATE.findall(text[counted])) if inside.surrogates else 0
        if not self.complete:
            begin, end, _ = counted.indices(len(text))
            part = found.within(begin, end)
            moved = Spans(part.ids, part.starts - begin, part.ends - begin)
            self._count_unknown(clean[counted], moved, changes)
        return found

    def _count_unknown(self, text: str, found: Spans, changes: Changes) -> None:
        """Count characters that no token stands for; white space may go without."""
        if self._unknown >= 0:
            covered = np.zeros(len(text) + 1, np.int64)
            known = found.ids != self._unknown
            np.add.at(covered, np.minimum(found.starts[known], len(text)), 1)
            np.add.at(covered, np.minimum(found.ends[known], len(text)), -1)
            lost = Counter(text[place] for place in np.flatnonzero(np.cumsum(covered)[:-1] == 0))
        else:
            # what vanishes moves the places of what follows, so places tell nothing
            lost = Counter(text)
        for character, count in lost.items():
            if character.isspace() or (self._unknown < 0 and self._is_known(character)):
                continue
            changes.unknown += count
            if len(changes.which) < _SHOWN:
                changes.which.add(character)

    def _is_known(self, character: str) -> bool:
        """Whether a character by itself has tokens for all of it."""
        known = self._known.get(character)
        if known is None:
            if self._byte_level:
                known = self._words.issuperset(_byte_symbols(character))
            else:
                known = bool(self._tokenizer.encode(character, add_special_tokens=False).ids)
            self._known[character] = known
        return known


def _spans(encoding: Encoding) -> Spans:
    offsets = encoding.offsets
    places = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)
    return Spans(np.asarray(encoding.ids, np.int64), places[:, 0], places[:, 1])


def _without_surrogates(text: str, changes: Changes) -> str:
    """Half surrogates, which are no characters, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text, count = _SURROGATE.subn("\ufffd", text)
        changes.surrogates += count
    return text


def _special_as_text(tokenizer: Tokenizer, named: Iterable[str]) -> Tokenizer:
    """A tokenizer that makes no control ids of a text.

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
    unknown = _unknown_id(content["model"], tokenizer)
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
    from tokenizers import Tokenizer

    changed = Tokenizer.from_str(json.dumps(content))
    changed.encode_special_tokens = True
    return changed


def _unknown_id(model: dict[str, Any], tokenizer: Tokenizer) -> int:
    """The id of what the vocabulary lacks; -1: it has none."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    found = tokenizer.token_to_id(token) if token else None
    return -1 if found is None else found


def _words(content: dict[str, Any]) -> set[str]:
    vocab = content["model"].get("vocab", ())
    return set(vocab) if isinstance(vocab, dict) else {entry[0] for entry in vocab}


def _is_byte_level(content: dict[str, Any]) -> bool:
    parts = json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])
    return '"ByteLevel"' in parts


def _byte_symbols(text: str) -> str:
    """What byte-level vocabularies write for the bytes of a text."""
    from tokenizers import pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(part for part, _ in plain.pre_tokenize_str(text))


def _has_every_byte(content: dict[str, Any]) -> bool:
    """Whether a tokenizer has a token for each byte, so that no character is lost."""
    from tokenizers import pre_tokenizers

    words = _words(content)
    if content["model"].get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in words for byte in range(256))
    return _is_byte_level(content) and words.issuperset(pre_tokenizers.ByteLevel.alphabet())

"""When two tokenizers are one, and what a continuation says."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lm_eval.models.utils import postprocess_generated_text

from mixloop.evals.checkpoints import Encode

log = logging.getLogger(__name__)


def tokenizer_identity(tokenizer: Any, encode: Encode, folder: Path) -> str:
    """Equal for tokenizers of two checkpoints' folders that read (`encode`) and write alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # a slow tokenizer says too little of itself: each is its own
    text = backend.to_str() if backend is not None else str(id(tokenizer))
    options = (tokenizer.special_tokens_map, sorted(tokenizer.init_kwargs.items()))
    # where special tokens that are written in a text are text, and where they are ids
    read = [encode(token) for token in tokenizer.all_special_tokens]
    named = repr((type(tokenizer), options, read)).replace(str(folder), "")
    return hashlib.sha256(f"{named}|{text}".encode()).hexdigest()


def ends_of_text(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text: of tokenizer, config.json and generation_config.json, one or several."""
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    named = [tokenizer.eos_token_id, *(getattr(c, "eos_token_id", None) for c in configs)]
    several = [ids if isinstance(ids, list | tuple) else [ids] for ids in named]
    ends = {end for ids in several for end in ids if isinstance(end, int) and end >= 0}
    for end in sorted(ends - {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}):
        # a default of transformers' that nobody looked at
        text = tokenizer.decode([end])
        log.warning("eos_token_id %d is the ordinary token %r: texts end there", end, text)
    return frozenset(ends)


class StopRule:
    """When a continuation is done, and the text it then is.

    Args:
        tokenizer: The checkpoint's.
        ends: The ids that end a text.
        until: Stop strings; the tokenizer's end of text is always one.
    """

    def __init__(self, tokenizer: Any, ends: frozenset[int], until: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        text = tokenizer.decode(tokenizer.eos_token_id, skip_special_tokens=False)
        self._stops = [*until, text] if text and text not in until else list(until)
        # a stop string of k characters lies within its last k bytes, so within 4k tokens
        self._span = 4 * max((len(stop) for stop in self._stops), default=1) + 1

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of these tokens is the last."""
        if tokens[-1] in self._ends:
            return True
        tail = self._tokenizer.decode(tokens[-self._span :], skip_special_tokens=False)
        return any(stop in tail for stop in self._stops)

    def text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """What a continuation says, without what follows its end or a stop string."""
        # what follows the end of text is noise of a row that rode along in its batch
        end = next((i + 1 for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        text = self._said(prompt, tokens[:end])
        return cast(str, postprocess_generated_text(text, stop=self._stops, think_end_token=None))

    def _said(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens behind their prompt.

        Alone, many decoders would take the first space for the one they put before a text.
        """
        before, whole = (
            self._tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (list(prompt), [*prompt, *tokens])
        )
        if whole.startswith(before):
            return cast(str, whole[len(before) :])
        # broken bytes can spoil the decoding of those in front of them
        return cast(str, self._tokenizer.decode(list(tokens), skip_special_tokens=True))

"""When two tokenizers are one, and what a continuation says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lm_eval.models.utils import postprocess_generated_text


def tokenizer_identity(tokenizer: Any, folder: Path) -> str:
    """Equal for tokenizers of two checkpoints' folders that read and write alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # a slow tokenizer says too little of itself: each is its own
    text = backend.to_str() if backend is not None else str(id(tokenizer))
    options = (tokenizer.special_tokens_map, sorted(tokenizer.init_kwargs.items()))
    named = repr((type(tokenizer), options)).replace(str(folder), "")
    return hashlib.sha256(f"{named}|{text}".encode()).hexdigest()


class StopRule:
    """When a continuation is done, and the text it then is.

    Args:
        tokenizer: The checkpoint's.
        end: The id that ends a text.
        until: Stop strings; the end of text is always one.
    """

    def __init__(self, tokenizer: Any, end: int, until: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._end = end
        text = tokenizer.decode(end, skip_special_tokens=False)
        self._stops = [*until, text] if text and text not in until else list(until)
        # a stop string of k characters lies within its last k bytes, so within 4k tokens
        self._span = 4 * max((len(stop) for stop in self._stops), default=1) + 1

    def reached(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of these tokens is the last."""
        if tokens[-1] == self._end:
            return True
        tail = self._tokenizer.decode(tokens[-self._span :], skip_special_tokens=False)
        return any(stop in tail for stop in self._stops)

    def text(self, tokens: list[int]) -> str:
        """What a continuation says, without what follows its end or a stop string."""
        # what follows the end of text is noise of a row that rode along in its batch
        ids = tokens[: tokens.index(self._end)] if self._end in tokens else tokens
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return cast(str, postprocess_generated_text(text, stop=self._stops, think_end_token=None))

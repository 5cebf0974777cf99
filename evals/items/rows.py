"""Rows of the four benchmarks: which fields they have, what is wrong with one, and their ids.

Every source's rows end in the fields lm-eval's stock task files read, plus `id` and `gold`, the
text whose bits per byte are measured. Ids are hashes of content, so they name the same item
wherever it came from and in whatever order it was stored.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mixloop.common.errors import shown

Row = dict[str, Any]

FIELDS: dict[str, tuple[str, ...]] = {
    "mmlu": ("question", "subject", "choices", "answer"),
    "gsm8k": ("question", "answer"),
    "math": ("problem", "solution"),
    "humaneval": ("task_id", "prompt", "canonical_solution", "test", "entry_point"),
}
_GOLD = {"gsm8k": "answer", "math": "solution", "humaneval": "canonical_solution"}
_LETTERS = "ABCD"
LONGEST = 2**22
"""Characters of an item's texts together: more than any model is asked in one go."""
_NAME = 200  # characters of an id or a subject
_UNSEEN = re.compile("[\x00-\x1f\x7f]")
_HALF = re.compile("[\ud800-\udfff]")
_Reader = Callable[[str, Any], Any]


class ItemsError(Exception):
    """No items, or items that can't be read: one line that says which and what to do."""


class RawRow(NamedTuple):
    """A row as it was read, and where (`FILE: row 3`), for the error that names it."""

    where: str
    content: Any


def read_rows(benchmark: str, raw: Iterable[RawRow]) -> list[Row]:
    """The rows with their `id` and `gold`.

    Raises:
        ItemsError: names benchmark, file, row and field of the first row that can't be used.
    """
    return [_RowReader(benchmark, row).read() for row in raw]


class _RowReader:
    """Takes one row's fields out, or says which is wrong."""

    def __init__(self, benchmark: str, raw: RawRow) -> None:
        self._benchmark = benchmark
        self._raw = raw
        self._readers: dict[tuple[str, str], _Reader] = {
            ("mmlu", "subject"): self._subject,
            ("mmlu", "choices"): self._choices,
            ("mmlu", "answer"): self._letter,
            ("math", "solution"): self._solution,
            ("humaneval", "task_id"): self._name,
            ("humaneval", "entry_point"): self._identifier,
        }

    def read(self) -> Row:
        problem = unusable(self._raw.content)
        if problem is not None:
            raise self._wrong(problem)
        row = {field: self._field(field) for field in FIELDS[self._benchmark]}
        if self._benchmark == "humaneval":
            self._must_be_callable(row)
        row["gold"] = _gold(self._benchmark, row)
        row["id"] = _item_id(self._benchmark, row)
        return row

    def _field(self, name: str) -> Any:
        if name not in self._raw.content:
            fields = ", ".join(FIELDS[self._benchmark])
            raise self._wrong(f"has no field {name!r}; a row's fields are {fields}")
        reader: _Reader = self._readers.get((self._benchmark, name), self._text)
        return reader(name, self._raw.content[name])

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong(f"field {name!r} is {shown(value)}; give a text")
        if name == _GOLD.get(self._benchmark) and not value.strip():
            raise self._wrong(f"field {name!r} is empty; give the gold answer, or drop the row")
        return value

    def _subject(self, name: str, value: Any) -> str:
        subject = re.sub(r"\W+", "_", self._text(name, value).strip().lower()).strip("_")
        if not subject:
            raise self._wrong(f"field {name!r} is empty; give one such as 'anatomy'")
        if len(subject) > _NAME:
            raise self._wrong(f"field {name!r} has {len(subject):,} characters; at most {_NAME}")
        return subject

    def _name(self, name: str, value: Any) -> str:
        text = self._text(name, value)
        if not text.strip() or len(text) > _NAME or _UNSEEN.search(text):
            raise self._wrong(
                f"field {name!r} is {shown(text)}; give up to {_NAME} printable characters"
            )
        return text

    def _identifier(self, name: str, value: Any) -> str:
        text = self._text(name, value)
        if not text.isidentifier():
            raise self._wrong(f"field {name!r} is {shown(text)}; give the name of the function")
        return text

    def _must_be_callable(self, row: Row) -> None:
        """That the tests can be passed at all: else every answer would be called wrong."""
        for fields, wanted in (
            (("prompt", "canonical_solution"), row["entry_point"]),
            (("test",), "check"),
        ):
            what = " and ".join(map(repr, fields))
            try:
                tree = ast.parse("".join(row[field] for field in fields))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise self._wrong(f"field {what}: no Python ({reason})") from None
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            if wanted not in names:
                raise self._wrong(f"field {what}: defines no function {wanted!r}")

    def _choices(self, name: str, value: Any) -> list[str]:
        texts = list(value) if isinstance(value, (list, tuple)) else []
        if len(texts) != len(_LETTERS) or not all(isinstance(text, str) for text in texts):
            raise self._wrong(f"field {name!r} is {shown(value)}; give a list of four texts")
        if not all(text.strip() for text in texts):
            raise self._wrong(f"field {name!r} has an empty text; fill it, or drop the row")
        return texts

    def _letter(self, name: str, value: Any) -> int:
        if isinstance(value, str) and value.strip().upper() in tuple(_LETTERS):
            return _LETTERS.index(value.strip().upper())
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_LETTERS):
            return value
        raise self._wrong(f"field {name!r} is {shown(value)}; give 0 to 3, or A to D")

    def _solution(self, name: str, value: Any) -> str:
        from lm_eval.tasks.minerva_math import utils

        text = self._text(name, value)
        try:
            utils.remove_boxed(utils.last_boxed_only_string(text))
        # lm-eval asserts, indexes and asks `in None`: all of it means "no answer found"
        except (AssertionError, TypeError, IndexError):
            raise self._wrong(
                rf"field {name!r} boxes no answer; put the final answer in \boxed{{…}}"
            ) from None
        return text

    def _wrong(self, problem: str) -> ItemsError:
        return ItemsError(f"{self._benchmark}: {self._raw.where} {problem}")


def unusable(content: Any) -> str | None:
    """Why what was read can't be a row, whatever its fields; None where nothing speaks against it.

    A text that no context holds would be made into tokens at every checkpoint, and be left out.
    """
    if not isinstance(content, Mapping):
        return f"is {shown(content)}, not an object with fields"
    size, waiting = 0, list(content.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            size += len(value)
            if _HALF.search(value):
                return f"field {name!r} holds half a character, {shown(value)}; mend the text"
        elif isinstance(value, Mapping):
            waiting += [(name, inner) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            size += len(value)
            waiting += [(name, inner) for inner in value if size <= LONGEST]
        if size > LONGEST:
            return f"field {name!r} is too long: an item has at most {LONGEST:,} characters"
    return None


def _item_id(benchmark: str, row: Mapping[str, Any]) -> str:
    if benchmark == "humaneval":
        return str(row["task_id"])
    digest = content_hash([row[field] for field in FIELDS[benchmark]])
    return f"{row['subject']}/{digest}" if benchmark == "mmlu" else f"{benchmark}/{digest}"


def content_hash(content: Any) -> str:
    """Twelve hex digits of a JSON value's text."""
    text = json.dumps(content, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _gold(benchmark: str, row: Mapping[str, Any]) -> str:
    if benchmark == "mmlu":
        return str(row["choices"][row["answer"]])
    return str(row[_GOLD[benchmark]])

"""The one exception that means: the user gave us something wrong, and one line that says what."""

from __future__ import annotations

import difflib
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class BadInput(Exception):  # noqa: N818 - says what is wrong, not that we failed
    """Bad input. The message is one line naming the file, the key, the value and the mend.

    The command prints it without a traceback and ends with exit code 2.
    """


def one_line(error: BaseException) -> str:
    """An exception's whole message in one line, behind its kind where that may be needed.

    An `OSError` and a `ValueError` say what is wrong; others may say no more than `'key'`.
    """
    text = " ".join(str(error).split())
    if text and isinstance(error, OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shown(value: object, length: int = 60) -> str:
    """A value from data for a message, as Python writes it, cut to a readable length.

    A few anchors of YAML can stand for more text than memory holds.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = length
    short.maxlevel = 2
    try:
        return short.repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        return f"{type(value).__name__} of thousands of digits"


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'rules'?`` or, with nothing close, ``; known: rules, static``."""
    names = sorted(known)
    # case is the commonest slip, and difflib alone would count every letter of it
    by_fold = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_fold[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


_SHAPES = dict.fromkeys(("list_type", "tuple_type"), "must be a list, as in [a, b]")
_SHAPES |= dict.fromkeys(
    ("dict_type", "model_type", "mapping_type"), "must be keys with values, as in {key: value}"
)
"""What YAML calls a thing, where pydantic speaks of Python's."""


def explain_error(
    error: ValidationError, *models: type[BaseModel], prefix: str = "", what: str = "key"
) -> str:
    """A validation error in one line: key, value, what would be right, and how much else is wrong.

    Args:
        error: what pydantic raised.
        models: the models it can have come from; without one, no key that was meant is suggested.
        prefix: before the key, such as ``policy.with``.
        what: what a key is called.
    """
    problems = error.errors(include_url=False)
    # an unknown key explains more than the missing one it was meant to be
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    key = ".".join(str(part) for part in ((prefix, *first["loc"]) if prefix else first["loc"]))
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        fallback = models[0] if models else None
        model = next((model for model in models if model.__name__ == error.title), fallback)
        mend = suggest(str(first["loc"][-1]), keys_at(model, first["loc"][:-1]))
        return f"{key}: unknown {what} (value {shown(value)}){mend}{more}"
    if kind == "missing":
        return f"{key}: missing; give it a value{more}"
    message = first["msg"].removeprefix("Value error, ")
    ours = kind == "value_error"  # most of our own validators name the value
    if kind in _SHAPES:
        message = _SHAPES[kind]
    elif not ours:
        message = message[:1].lower() + message[1:]
    text = shown(value, 200)
    if not isinstance(value, Mapping) and not (ours and text.strip("'") in message):
        message += f" (value {text})"
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def keys_at(model: type[BaseModel] | None, path: Sequence[str | int]) -> list[str]:
    """The keys that a model knows where a validation error's location leads to."""
    names_are_free = False  # inside a mapping, whose names are the user's, such as a source's
    for part in path:
        if isinstance(part, int):
            continue
        if names_are_free or model is None:
            names_are_free = False
            continue
        annotation = next(
            (f.annotation for name, f in model.model_fields.items() if part in (name, f.alias)),
            None,
        )
        model = next(_models_in(annotation), None)
        names_are_free = typing.get_origin(annotation) in (dict, Mapping)
    return [f.alias or name for name, f in model.model_fields.items()] if model else []


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside ``Model``, ``Model | None``, ``dict[str, Model]``, …."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)

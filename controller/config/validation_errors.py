"""A validation error in one line: the key, the value, what would be right."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mixloop.common.errors import shown


def explain_error(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as one line: key, value, and what would be right."""
    problems = error.errors()
    # An unknown key explains more than the missing one it was meant to be.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    loc = [str(part) for part in first["loc"]]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_describe(first, loc, model)}{more}"


def _describe(problem: Any, loc: Sequence[str], model: type[BaseModel]) -> str:
    key = ".".join(loc)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        close = difflib.get_close_matches(loc[-1], known, n=1)
        mend = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {mend}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message: str = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not loc:
        return message
    value = "" if isinstance(problem["input"], dict) else f" {shown(problem['input'], 200)}:"
    return f"{key}:{value} {message}"


def _keys_at(model: type[BaseModel], loc: Sequence[str]) -> list[str]:
    """The keys that are legal at a place in the file."""
    here: type[BaseModel] | None = model
    inside_mapping = False
    for part in loc:
        if inside_mapping:  # `part` is a free name, such as a source's
            inside_mapping = False
            continue
        if here is None:
            return []
        here, inside_mapping = _step_into(here, part)
    if here is None:
        return []
    return [field.alias or name for name, field in here.model_fields.items()]


def _step_into(model: type[BaseModel], part: str) -> tuple[type[BaseModel] | None, bool]:
    for name, field in model.model_fields.items():
        if part in (name, field.alias):
            return _model_in(field.annotation), typing.get_origin(field.annotation) is dict
    return None, False


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside ``Model``, ``Model | None``, ``dict[str, Model]``, if any."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None

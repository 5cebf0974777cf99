"""A policy built from its options; wrong ones are refused in one line with key and mend."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mixloop.common.errors import explain_error, keys_at, shown, suggest

from .policy_error import PolicyError, raised

PREFIX = "policy.with"


def build_policy(cls: type[Any], options: Mapping[str, Any], label: str) -> Any:
    """An instance of ``cls``: ``cls(Options)`` where it has an ``Options`` model, else keywords.

    Raises:
        PolicyError: for an option that is unknown, missing or wrong, or a constructor that raises.
    """
    model = _options_model(cls)
    if model is None:
        _check_keywords(cls, options)
    arguments = [_validated(model, options)] if model is not None else []
    try:
        return cls(*arguments, **({} if arguments else options))
    except PolicyError:
        raise
    except Exception as error:
        cause = raised(error, cls, " while it was built")
        raise PolicyError(f"policy {label}: {cause}") from error


def options_schema(cls: type[Any]) -> dict[str, Any]:
    """JSON schema of the options; for keyword constructors, their names and defaults."""
    model = _options_model(cls)
    if model is not None:
        return model.model_json_schema(by_alias=True)
    parameters = _parameters(cls)
    named = {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    required = [n for n, p in named.items() if p.default is p.empty]
    properties = {n: {} if n in required else {"default": p.default} for n, p in named.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": len(named) < len(parameters),
    }


def _options_model(cls: type[Any]) -> type[BaseModel] | None:
    model = getattr(cls, "Options", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _validated(model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    """The options as the model; also refuses keys a lenient user model would ignore."""
    if model.model_config.get("extra") != "allow":
        _refuse_unknown(options, keys_at(model, ()))
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise PolicyError(explain_error(error, model, prefix=PREFIX, what="option")) from None


def _check_keywords(cls: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse options the constructor has no keyword for, and name the ones it misses."""
    parameters = _parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    _refuse_unknown(options, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise PolicyError(f"{PREFIX}.{name}: missing; {cls.__name__} needs it")


def _parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    # a class without __init__ has object's, whose signature says *args, **kwargs and means none
    if not {"__init__", "__new__"} & {name for base in cls.__mro__[:-1] for name in vars(base)}:
        return {}
    parameters = inspect.signature(cls).parameters
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    return {name: p for name, p in parameters.items() if p.kind not in positional}


def _refuse_unknown(options: Mapping[str, Any], names: Iterable[str]) -> None:
    keys = list(names)
    for key, value in options.items():
        if key not in keys:
            mend = suggest(str(key), keys) or "; this policy takes no options"
            raise PolicyError(f"{PREFIX}.{key}: unknown option (value {shown(value)}){mend}")

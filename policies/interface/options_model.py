"""Field types that the options of ``rules`` share.

Options of a policy: validated by its model, refused in one line with the key and a mend.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from mixloop.common.errors import explain_error, keys_at, shown, suggest

from .observation import Phase
from .policy_error import PolicyError


def listed(value: object) -> object:
    """One of a thing may be written without the list around it."""
    return value if isinstance(value, list | tuple) else [value]


def nonempty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or any(not name for name in value):
        raise ValueError("name at least one")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(nonempty)]
Phases = Annotated[tuple[Phase, ...], BeforeValidator(listed)]
Share = Annotated[float, Field(ge=0, le=1)]

PREFIX = "policy.with"


def build_policy(cls: type[Any], options: Mapping[str, Any], label: str) -> Any:
    """An instance of ``cls``: ``cls(Options)`` where it has an ``Options`` model, else keywords.

    Raises:
        PolicyError: for an option that is unknown, missing or wrong, or a constructor that raises.
    """
    model = options_model(cls)
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if model is not None:
        arguments = (validate(model, options),)
    else:
        check_keywords(cls, options)
        keywords = dict(options)
    try:
        return cls(*arguments, **keywords)
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(f"policy {label}: {_said(error)} while it was built") from error


def options_model(cls: type[Any]) -> type[BaseModel] | None:
    """The class's ``Options`` model, if it has one."""
    model = getattr(cls, "Options", None)
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def validate(model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    """The options as the model; also refuses keys a lenient user model would ignore.

    Raises:
        PolicyError: one line for the first thing wrong.
    """
    if model.model_config.get("extra") != "allow":
        _refuse_unknown(options, keys_at(model, ()))
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise PolicyError(explain_error(error, model, prefix=PREFIX, what="option")) from None


def check_keywords(cls: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse options the constructor has no keyword for, and name the ones it misses."""
    parameters = _parameters(cls)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    _refuse_unknown(options, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise PolicyError(f"{PREFIX}.{name}: missing; {cls.__name__} needs it")


def schema(cls: type[Any]) -> dict[str, Any]:
    """JSON schema of the options; for keyword constructors, their names and defaults."""
    model = options_model(cls)
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


def _parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    # a class without __init__ has object's, whose signature says *args, **kwargs and means none
    if not {"__init__", "__new__"} & {name for base in cls.__mro__[:-1] for name in vars(base)}:
        return {}
    parameters = inspect.signature(cls).parameters
    positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    return {name: p for name, p in parameters.items() if p.kind not in positional}


def _refuse_unknown(options: Mapping[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key, value in options.items():
        if key not in names:
            mend = suggest(str(key), names) or "; this policy takes no options"
            raise PolicyError(f"{PREFIX}.{key}: unknown option (value {shown(value)}){mend}")


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

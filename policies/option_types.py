"""Field types that the options of ``rules`` share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from .observation import Phase


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

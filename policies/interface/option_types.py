"""What the options of built-in policies are made of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .checkpoint_scores import Phase


class OptionsModel(BaseModel):
    """Base of the built-in policies' options: immutable, unknown keys refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


def listed(value: object) -> Any:
    """One of a thing may be written without the list around it."""
    return value if isinstance(value, list | tuple) else [value]


def _nonempty(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or any(not name for name in value):
        raise ValueError("name at least one")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_nonempty)]
Phases = Annotated[tuple[Phase, ...], BeforeValidator(listed)]
Share = Annotated[float, Field(ge=0, le=1)]

"""What an intervention of ``rules`` does: move, scale, set, swap."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from .mixtures import Mixture
from .option_types import Names, Share
from .protocol import OptionsModel


class Move(OptionsModel):
    """``step`` of all training tokens goes to ``to``, taken from ``from`` in proportion.

    Both are sources or tags, or lists of them; ``from: rest`` is every other source that has
    weight. ``to`` (together) never exceeds ``cap``; no source of ``from`` falls below ``floor``.
    A source on standby is brought in only by its own name.
    """

    to: Names
    from_: Names = Field(default=("rest",), alias="from")
    step: Annotated[float, Field(gt=0, le=1)] = 0.05
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0


class Scale(OptionsModel):
    """The share of ``of`` (sources or tags, together) times ``by``; the others give or take.

    ``by`` above 1 takes from ``from`` in proportion, below 1 gives to it. ``cap`` bounds the scaled
    share, ``floor`` every source that gives.
    """

    of: Names
    by: Annotated[float, Field(gt=0, le=100)]
    from_: Names = Field(default=("rest",), alias="from")
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    floor: Share = 0.0

    @model_validator(mode="after")
    def _changes(self) -> Scale:
        if self.by == 1:
            raise ValueError("by 1 changes nothing; give a factor above or below 1")
        return self


class Swap(OptionsModel):
    """A source on standby in for one that underperforms: ``part`` of the share of ``out`` (sources
    or tags) goes to the source ``in``."""

    in_: Annotated[str, Field(min_length=1, alias="in")]
    out: Names
    part: Annotated[float, Field(gt=0, le=1)] = 1.0


class Action(OptionsModel):
    """One of: ``move`` points, ``scale`` a share, ``set`` a mixture, ``swap`` sources."""

    move: Move | None = None
    scale: Scale | None = None
    set: Mixture | None = None
    swap: Swap | None = None

    @model_validator(mode="after")
    def _one_action(self) -> Action:
        given = [key for key in ("move", "scale", "set", "swap") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give one of move, scale, set and swap, not {found}")
        return self

"""Which proposals a person has to approve first. Pure.

What counts is the change that was *asked* for, before the trust region trims it: ten small steps
towards a mixture that nobody wants are asked for once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mixloop.policies.guards import total_variation
from mixloop.trainer.job import Tokens

Share = Annotated[float, Field(ge=0, le=1)]


class ApprovalSection(BaseModel):
    """When a person decides. Nothing given: never."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: Share | None = Field(
        None, description="total variation of the requested change above which a person decides"
    )
    sources: dict[str, Share] = Field(
        default_factory=dict,
        description="per source, the change of its share above which a person decides",
    )
    timeout: Tokens | None = Field(
        None,
        description="training tokens a proposal waits before it expires and the mixture is held; "
        "default: until the next proposal",
    )


def needed(
    rule: ApprovalSection, before: Mapping[str, float], asked: Mapping[str, float]
) -> str | None:
    """Why this change needs a person, or None."""
    change = total_variation(dict(before), dict(asked))
    if rule.above is not None and change > rule.above:
        return f"it asks for a change of {change:.3g}, above {rule.above:g}"
    for name, limit in rule.sources.items():
        moved = asked.get(name, 0.0) - before.get(name, 0.0)
        if abs(moved) > limit:
            return f"it moves {name} by {moved:+.3g}, above {limit:g}"
    return None

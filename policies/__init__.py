"""Policies: what decides the mixture, and the guards that bound every decision.

Nothing here does I/O or knows the other rooms. Names load on first use, so that importing the
package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import PolicyError
    from .mixtures import in_force, total_variation
    from .observation import (
        BenchmarkScore,
        Evaluation,
        Goal,
        Items,
        Limits,
        Metric,
        MissingScore,
        Observation,
        PastDecision,
        Source,
        pooled_items,
    )
    from .paired import Difference, paired_difference
    from .protocol import Checkable, Hold, Policy, Proposal, reply_from_json, reply_to_json
    from .registry import load_policy, policy_digest, policy_names, policy_options_schema

__all__ = [
    "BenchmarkScore",
    "Checkable",
    "Difference",
    "Evaluation",
    "Goal",
    "Hold",
    "Items",
    "Limits",
    "Metric",
    "MissingScore",
    "Observation",
    "PastDecision",
    "Policy",
    "PolicyError",
    "Proposal",
    "Source",
    "in_force",
    "load_policy",
    "paired_difference",
    "policy_digest",
    "policy_names",
    "policy_options_schema",
    "pooled_items",
    "reply_from_json",
    "reply_to_json",
    "total_variation",
]

_HOMES = {
    "errors": ["PolicyError"],
    "mixtures": ["in_force", "total_variation"],
    "observation": [
        "BenchmarkScore", "Evaluation", "Goal", "Items", "Limits", "Metric", "MissingScore",
        "Observation", "PastDecision", "Source", "pooled_items",
    ],
    "paired": ["Difference", "paired_difference"],
    "protocol": ["Checkable", "Hold", "Policy", "Proposal", "reply_from_json", "reply_to_json"],
    "registry": ["load_policy", "policy_digest", "policy_names", "policy_options_schema"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)

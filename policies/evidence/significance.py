"""What a policy claims to have seen, and whether that stands when many things were looked at.

A policy that acts because a benchmark answered says so in its proposal's evidence:
``"claims": [{"what": "gsm8k worse", "z": 3.1}, …]``, one one-sided normal score for each finding
that the proposal rests on, and ``"tests": m``, how many such findings it looked for at this
decision (default: the claims). The significance guard then corrects for their number. A policy
that plans from a model, explores, or follows a schedule claims nothing and isn't asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A finding that a proposal rests on: in words, and its one-sided normal score."""

    what: str
    z: float


def claims_of(evidence: Mapping[str, Any]) -> tuple[tuple[Claim, ...], int]:
    """The claims in a proposal's evidence and the number of tests they were found among.

    What isn't of the documented form claims nothing; a score that is no number counts as 0.
    """
    listed = evidence.get("claims")
    entries = listed if isinstance(listed, list | tuple) else ()
    claims = tuple(
        Claim(str(entry.get("what", "a benchmark")), _number(entry.get("z")))
        for entry in entries
        if isinstance(entry, Mapping)
    )
    tests = evidence.get("tests")
    return claims, max(len(claims), int(_number(tests)) if tests else 0)


def _number(value: Any) -> float:
    sound = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if sound else 0.0


def tail(z: float) -> float:
    """The probability that a standard normal variable exceeds ``z``."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def holm(scores: Sequence[float], level: float, tests: int | None = None) -> list[bool]:
    """Which one-sided scores stand at a family-wise error.

    (Holm 1979, *Scandinavian Journal of Statistics* 6.) The i-th smallest of m tail probabilities
    (from 0) must not exceed ``level / (m - i)``, as all before it must.

    Args:
        scores: normal scores.
        level: the family-wise error.
        tests: how many hypotheses there were, those without a score here counted as not standing.
    """
    family = max(len(scores), tests or 0)
    stands = [False] * len(scores)
    for rank, index in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i])):
        if tail(scores[index]) > level / (family - rank):
            break
        stands[index] = True
    return stands

"""The experts among an experiment's branches, and how their halves make a part of their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from .branch_work import TrainedBranch
from .spec import ExperimentSpec

Part = Literal["whole", "first", "second"]
SINGLE = 1 - 1e-6  # share of one source from which a branch is its expert
EARLIEST, LATEST = 0.05, 0.95  # a part below which scaling a half up is only noise


@dataclass(frozen=True)
class Expert:
    """The branch of a source, and the part of its learning that was early (0: not halved)."""

    source: str
    number: int
    early: float

    @property
    def halved(self) -> bool:
        """Whether its two halves say something each."""
        return EARLIEST <= self.early <= LATEST


def experts_of(spec: ExperimentSpec, trained: Mapping[int, TrainedBranch]) -> list[Expert]:
    """The branches that are experts and were trained, one for each source."""
    found: dict[str, Expert] = {}
    for number, weights in enumerate(spec.branches, start=1):
        source = single_source(weights)
        if source is not None and trained[number].failed is None:
            found.setdefault(source, Expert(source, number, trained[number].early))
    return list(found.values())


def single_source(weights: Mapping[str, float]) -> str | None:
    """The source that has all the weight, if one does."""
    return next((name for name, weight in weights.items() if weight >= SINGLE), None)


def delta_name(expert: Expert, half: str) -> str:
    """What the merges call a delta."""
    return f"{expert.source}/{half}"


def scales(expert: Expert, part: Part) -> dict[str, float]:
    """Factors of an expert's deltas in a part of its data, as long as the whole."""
    if not expert.halved:
        halves = ["first", "second"] if expert.early else ["first"]
        return dict.fromkeys(halves, 1.0)
    if part == "whole":
        return {"first": 1.0, "second": 1.0}
    share = expert.early if part == "first" else 1 - expert.early
    return {part: 1 / share}


def parts_of(experts: Sequence[Expert]) -> tuple[Part, ...]:
    """What can be fitted to: the halves only where every expert has them."""
    return get_args(Part) if all(expert.halved for expert in experts) else ("whole",)

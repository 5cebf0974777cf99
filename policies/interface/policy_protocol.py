"""The interface of a policy: an observation in; a proposal, a hold or an experiment out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter

from mixloop.common.types import DEEPEST, MOST_VALUES, is_deeper

from .experiment_result import BranchSchedule, MergeDesign
from .observation import Observation
from .policy_error import PolicyError

LARGEST_REPLY = 2**22
"""Bytes of a policy's answer: it is kept for good, and read by every later decision and view."""


def jsonable(value: Any) -> Any:
    """The value as plain JSON data: numpy numbers and arrays unwrapped, NaN and infinity null."""
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(entry) for entry in value]
    return value


Evidence = Annotated[dict[str, JsonValue], BeforeValidator(jsonable)]


class Proposal(BaseModel):
    """A mixture a policy wants, why, and what it saw.

    ``weights`` is the mixture from now on (share of training tokens per source; a source left out
    gets none). ``plan`` is what the policy intends for the future, as stretches in order: each
    ``(until_tokens, weights)`` holds from the end of the one before to ``until_tokens``, counted
    in the run's training tokens; the first starts now and holds ``weights``. Guards project the
    ledger along it. ``evidence`` is any JSON data; numpy values are unwrapped. ``declared``: the
    plan is one the run's configuration declares, approved in advance; the controller checks that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    kind: Literal["proposal"] = "proposal"
    weights: dict[str, float]
    reason: str
    plan: tuple[tuple[int, dict[str, float]], ...] = ()
    evidence: Evidence = {}
    declared: bool = False

    def __init__(
        self,
        weights: Mapping[str, float],
        reason: str,
        plan: Sequence[tuple[int, Mapping[str, float]]] = (),
        evidence: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        fields = {"weights": dict(weights), "reason": reason, "evidence": evidence or {}}
        super().__init__(**fields, plan=[(until, dict(w)) for until, w in plan], **extra)


class Hold(BaseModel):
    """No change. ``inconclusive``: the evidence may yet call for one but isn't there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["hold"] = "hold"
    reason: str
    evidence: Evidence = {}
    verdict: Literal["hold", "inconclusive"] = "hold"

    def __init__(
        self,
        reason: str,
        evidence: Mapping[str, Any] | None = None,
        verdict: Literal["hold", "inconclusive"] = "hold",
        **extra: Any,
    ) -> None:
        super().__init__(reason=reason, evidence=evidence or {}, verdict=verdict, **extra)


class Experiment(BaseModel):
    """Branches wanted from the newest checkpoint, before anything is decided; the mixture stays.

    The controller runs them elsewhere than on the run's device and within the budget of
    ``experiments.budget``; what came of it is in ``observation.experiments`` when the policy is
    asked again, as soon as the experiment has ended. A branch on the present mixture is always
    added as the control.

    Attributes:
        branches: one mixture each. For merges, one expert per source, each on that source alone.
        tokens: training tokens of each branch.
        schedule: the branch's learning rate: as the run's own would go on, or to zero over its
            length, which shows sooner what the tokens are worth.
        merge: fit a mixture on the branches' linear merges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    kind: Literal["experiment"] = "experiment"
    branches: tuple[dict[str, float], ...] = Field(min_length=1)
    tokens: int = Field(gt=0)
    reason: str
    schedule: BranchSchedule = "to zero"
    merge: MergeDesign | None = None
    evidence: Evidence = {}

    def __init__(
        self, branches: Sequence[Mapping[str, float]], tokens: int, reason: str, **extra: Any
    ) -> None:
        mixtures = [dict(weights) for weights in branches]
        super().__init__(branches=mixtures, tokens=tokens, reason=reason, **extra)


Reply = Proposal | Hold | Experiment
"""What a policy may answer."""


@runtime_checkable
class Policy(Protocol):
    """Decides from one observation. Pure: the same observation gives the same answer.

    A class may add ``Options``, a pydantic model its options are validated by (it is then built as
    ``cls(options)``; without one, as ``cls(**options)``), ``check(sources, benchmarks)``, see
    ``Checkable``, and ``evaluations_needed(sources, benchmarks)``, see ``Learning``.
    """

    def decide(self, observation: Observation) -> Reply:
        """What to do next."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A policy that can tell before the run starts that it names something unknown."""

    def check(self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a name in neither ``sources`` (name to tags) nor benchmarks."""
        ...


@runtime_checkable
class Learning(Protocol):
    """A policy that can tell how many evaluations it takes before scores move it."""

    def evaluations_needed(
        self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]
    ) -> Mapping[str, int]:
        """By what it may do, the evaluations up to its first verdict; 0 where scores don't matter.

        A run too short for all of it is refused before it starts. ``sources`` maps names to tags.
        """
        ...


_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])


def reply_to_json(reply: object) -> str:
    """A policy's answer as JSON text, to cross a process boundary.

    Raises:
        PolicyError: when it is neither a ``Proposal`` nor a ``Hold`` nor an ``Experiment``, holds a
            number that is none, or is larger or deeper than a journal should keep of one decision.
    """
    if not isinstance(reply, Reply):
        kind = type(reply).__name__
        raise PolicyError(f"decide() returned {kind}, not a Proposal, a Hold or an Experiment")
    for place, value in _not_finite(reply.model_dump(exclude={"evidence"})):
        raise PolicyError(f"decide() returned {type(reply).__name__} with {place} {value}")
    text = reply.model_dump_json()
    if len(text) > LARGEST_REPLY:
        raise PolicyError(
            f"decide() returned {len(text) / 2**20:.1f} MiB, which every later look at the run "
            f"would read; {LARGEST_REPLY // 2**20} at most: leave detail out of reason and evidence"
        )
    if text.count(",") > MOST_VALUES // 2 or is_deeper(reply.evidence, DEEPEST // 2):
        raise PolicyError(
            f"decide() returned more than {MOST_VALUES // 2:,} values, or evidence that is nested "
            f"more than {DEEPEST // 2} deep: leave detail out of reason and evidence"
        )
    return text


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Numbers that are none, each with where it is, as in ``branches.1.web``, from 1."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _not_finite(entry, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value, start=1):
            yield from _not_finite(entry, f"{place}.{number}")


def reply_from_json(text: str | bytes) -> Reply:
    """The answer that ``reply_to_json`` wrote.

    Raises:
        PolicyError: when the text is no such answer.
    """
    try:
        return _REPLY.validate_json(text)
    except (ValueError, TypeError) as error:  # TypeError: a field of the constructor is missing
        raise PolicyError(f"no policy answer: {str(error).splitlines()[0]}") from None

"""What goes into the guards and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mixloop.common.units import Tokens
from mixloop.policies.evidence import Claim, PolicyStanding, RegressionSettings, Veto
from mixloop.policies.interface import OptionsModel, Phase, Share, Source, listed

from .guard_registry import load_guard

Action = Literal["passed", "changed", "blocked", "flagged"]


class GuardSettings(OptionsModel):
    """The ``guards:`` section of run.yaml.

    ``max_epochs``: most epochs of any source (null: reported, not enforced). ``max_change``: most
    total variation between the mixture in force and the next. ``dwell``: least training tokens
    between two interventions. ``dead_band``: total variation below which a change isn't worth an
    order. ``significance``: family-wise error of what a policy claims to have seen, and of vetoes.
    ``warmup``: whether interventions wait for its end. ``decay``: "no-credit" refuses changes that
    rest on gains or losses seen while the learning rate decays, "hold" every change.
    ``loss_spike``: hold while the training loss is above its recent median by that part of it
    (null: never). ``floor``, ``cap``: bounds of every source's share; floors skip sources without
    weight and standby ones. ``regression``: the way back when the run has become significantly
    worse (null: off). ``use``: installed guards that take part too, by name.
    """

    max_epochs: Annotated[float, Field(gt=0)] | None = 5.0
    max_change: Annotated[float, Field(gt=0, le=1)] = 0.10
    dwell: Tokens = 0
    dead_band: Share = 0.002
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    warmup: Literal["hold", "allow"] = "hold"
    decay: Literal["no-credit", "hold", "allow"] = "no-credit"
    loss_spike: Annotated[float, Field(gt=0)] | None = 0.2
    floor: Share = 0.0
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    regression: RegressionSettings | None = RegressionSettings()
    use: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()

    @field_validator("use")
    @classmethod
    def _installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            load_guard(name)
        return names

    @model_validator(mode="after")
    def _ordered(self) -> GuardSettings:
        if self.floor > self.cap:
            raise ValueError(f"floor {self.floor:g} is above cap {self.cap:g}; lower the floor")
        return self


@dataclass(frozen=True)
class GuardContext:
    """The run as the guards see it, at the moment of the decision.

    ``weights`` are in force. ``drawn`` and ``tokens`` (training tokens, per source and in all)
    include the lead until a switch takes effect; ``horizon`` is the tokens from there to the next
    decision, ``budget`` the whole run's. ``last_intervention_tokens`` is where the last
    intervention came into force, None before the first; ``order_pending`` says that an order is
    out that the trainer doesn't follow yet. ``plan`` is what the order in force does by itself, as
    stretches ``(until_tokens, weights)``, the first of which is now. ``declared``: a stage approved
    in advance; ``operator``: an order of a person; ``way_back``: the regression guard's own, to the
    last good mixture. ``standing`` is how the policy stands with that guard. ``phase`` is the learning rate's. ``claims`` are
    what the proposal rests on, ``tests`` how many such findings were looked for. ``vetoes`` speak
    against any change but one that goes back. ``loss_ratio``: the training loss over its recent
    median, None where that isn't known. ``pins``: shares that a person holds fixed.
    """

    sources: Mapping[str, Source]
    weights: Mapping[str, float]
    drawn: Mapping[str, float]
    tokens: int
    budget: int
    horizon: int
    last_intervention_tokens: int | None = None
    order_pending: bool = False
    plan: tuple[tuple[int, Mapping[str, float]], ...] = ()
    declared: bool = False
    operator: bool = False
    way_back: bool = False
    standing: PolicyStanding = PolicyStanding()
    phase: Phase | None = None
    claims: tuple[Claim, ...] = ()
    tests: int = 0
    vetoes: tuple[Veto, ...] = ()
    loss_ratio: float | None = None
    pins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GuardNote:
    """What one guard did. ``before`` and ``after`` are whole mixtures, given when it changed one.

    The mixtures chain: the first ``before`` is the proposal, each further one the last ``after``.
    """

    guard: str
    action: Action
    detail: str
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The note as JSON data."""
        return dict(vars(self))


@dataclass(frozen=True)
class GuardResult:
    """What the guards made of a proposal.

    ``pass``: ``weights`` may be published. ``hold``: keep what is in force, for now.
    ``inconclusive``: keep it, because what the proposal rests on may be chance. ``refused``:
    nothing legal in this direction; keep, and raise an alarm.

    ``weights`` (every source named) and ``plan`` are as the guards left them, None and empty
    unless the verdict is ``pass``. ``nearest`` is the nearest legal mixture when an operator's
    order is refused and there is one.
    """

    verdict: Literal["pass", "hold", "inconclusive", "refused"]
    weights: dict[str, float] | None
    notes: tuple[GuardNote, ...]
    plan: tuple[tuple[int, dict[str, float]], ...] = ()
    nearest: dict[str, float] | None = None

"""A policy under test: how it is built, what it answered, and how long that took."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mixloop.policies.interface import (
    Checkable,
    Observation,
    Policy,
    PolicyError,
    Reply,
    build_policy,
    load_policy,
)

from .edge_cases import ORDINARY, SITUATIONS, SampleNames

WARMING = "per-item outcomes"


@dataclass(frozen=True)
class Answered:
    """What a policy did in one situation.

    ``run`` is the observation without its history; ``reply`` whatever it returned, ``error`` what
    it raised, ``refusal`` why its own ``check`` would not have let such a run start.
    """

    situation: str
    run: Observation
    reply: Any = None
    error: Exception | None = None
    refusal: str = ""
    seconds: float = 0.0
    by: type[Any] | None = None

    @property
    def sound(self) -> bool:
        """Whether there is an answer to look at."""
        return isinstance(self.reply, Reply)


@dataclass
class Subject:
    """A policy that checks are run on; every situation is put to it once and remembered.

    Args:
        build: makes a fresh instance.
        names: the sources and benchmarks of the runs it is shown.
        options: as given by the user, to know which sources it was told of.
        clock: seconds; for the time a decision takes.
    """

    build: Callable[[], Policy]
    names: SampleNames = ORDINARY
    options: Mapping[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter
    _answers: dict[str, Answered] = field(default_factory=dict, repr=False)

    def answers(self) -> list[Answered]:
        """Its answer in every situation."""
        return [self.answer(name) for name in SITUATIONS]

    def answer(self, situation: str) -> Answered:
        """Its answer in this situation, by a fresh instance."""
        if situation not in self._answers:
            if not self._answers:
                self._ask(WARMING)  # what is imported on first use is no part of a decision
            self._answers[situation] = self._ask(situation)
        return self._answers[situation]

    def observation(self, situation: str) -> Observation:
        """The situation, told with this subject's names."""
        return SITUATIONS[situation](self.names)

    def _ask(self, situation: str) -> Answered:
        observation = self.observation(situation)
        policy = self.build()
        refusal = _refusal(policy, observation)
        run = copy.deepcopy(observation.model_copy(update={"evaluations": (), "decisions": ()}))
        begun = self.clock()
        try:
            reply = policy.decide(observation)
        except Exception as error:
            return Answered(situation, run, error=error, by=type(policy), refusal=refusal)
        return Answered(situation, run, reply, None, refusal, self.clock() - begun)

    def was_told_of(self, word: str) -> bool:
        """Whether an option names this source or tag."""
        return json.dumps(word) in json.dumps(self.options, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    return str(value)


def _refusal(policy: Policy, observation: Observation) -> str:
    if not isinstance(policy, Checkable):
        return ""
    tags = {name: source.tags for name, source in observation.sources.items()}
    try:
        policy.check(tags, sorted(observation.benchmarks()))
    except PolicyError as refused:
        return str(refused)
    return ""


def subject(
    policy: str | type[Any] | Callable[[], Policy],
    options: Mapping[str, Any] | None = None,
    *,
    base: Path | str | None = None,
    names: SampleNames = ORDINARY,
    clock: Callable[[], float] = time.perf_counter,
) -> Subject:
    """The policy that a reference, a class or a function without arguments stands for.

    Raises:
        PolicyError: when it can't be found, or its options don't fit.
    """
    keywords = dict(options or {})

    def build() -> Policy:
        if isinstance(policy, str):
            return load_policy(policy, keywords, base=base)
        if isinstance(policy, type):
            instance: Policy = build_policy(policy, keywords, policy.__name__)
            return instance
        return policy()

    build()  # a mistake in the options is no finding of a check
    return Subject(build, names, keywords, clock)

"""The checks of the conformance suite: what a policy must do, in every situation.

A check raises ``AssertionError`` with one line that names the situation and what was found.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import fsum
from typing import Any

from mixloop.policies.guards import GuardContext, GuardSettings, apply_guards
from mixloop.policies.interface import (
    Hold,
    Observation,
    Policy,
    PolicyError,
    Proposal,
    Reply,
    raised,
    reply_from_json,
    reply_to_json,
)
from mixloop.policies.mixture import in_force, total_variation

from .policy_runner import Answered, Subject

ORDINARY = "an ordinary run"
ITEMS = "per-item outcomes"
FIRST = "a first evaluation"
YEARS = 987_654_321.0
"""Seconds by which the time of day is set forward (31 years)."""


@dataclass(frozen=True)
class ConformanceCheck:
    """One thing a policy must do. Call it with a ``Subject``.

    ``name`` is short and without spaces, ``title`` one line for people.
    """

    name: str
    title: str
    run: Callable[[Subject], None]

    def __call__(self, subject: Subject) -> None:
        """Raise ``AssertionError`` where the policy doesn't."""
        self.run(subject)

    def __str__(self) -> str:
        return self.name


def fail(situation: str, what: str) -> AssertionError:
    """The failure of a check, in one line."""
    return AssertionError(f"in {situation}: {what}")


def survives(situation: str, subject: Subject) -> None:
    """It answers with a proposal or a hold that gives a reason.

    A ``PolicyError`` is allowed where the policy's own ``check`` refuses such a run.
    """
    answer = subject.answer(situation)
    if answer.error is not None:
        if answer.refusal and isinstance(answer.error, PolicyError):
            return
        raise fail(situation, f"raised {raised(answer.error, answer.by)}")
    if not isinstance(answer.reply, Reply):
        kind = type(answer.reply).__name__
        raise fail(situation, f"decide() returned {kind}, not a Proposal, a Hold or an Experiment")
    if not answer.reply.reason.strip():
        raise fail(situation, "the answer gives no reason")


def fits_an_ordinary_run(subject: Subject) -> None:
    """Its options fit the run it is shown: else nothing below would be tested."""
    refusal = subject.answer(ORDINARY).refusal
    if refusal:
        raise AssertionError(f"its options name what the run hasn't got: {refusal}")
    survives(ORDINARY, subject)


def _proposals(subject: Subject) -> Iterator[tuple[Answered, Proposal]]:
    for answer in subject.answers():
        if isinstance(answer.reply, Proposal):
            yield answer, answer.reply


def _mixtures(subject: Subject) -> Iterator[tuple[Answered, str, Mapping[str, float]]]:
    """Every mixture it answered with: where, what of the answer, the mixture."""
    for answer, proposal in _proposals(subject):
        yield answer, "the proposal", proposal.weights
        for until, weights in proposal.plan:
            yield answer, f"the plan to {until}", weights


def known_sources(subject: Subject) -> None:
    """Every mixture names sources of the run only."""
    for answer, label, weights in _mixtures(subject):
        unknown = [name for name in weights if name not in answer.run.sources]
        if unknown:
            raise fail(answer.situation, f"{label} names {unknown[0]!r}, which is no source there")


def on_the_simplex(subject: Subject) -> None:
    """Every mixture's shares are finite, not negative and sum to 1 (to 1e-6)."""
    for answer, label, weights in _mixtures(subject):
        for name, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise fail(answer.situation, f"{label} gives {name} {weight}, which is no share")
        total = fsum(weights.values())
        if abs(total - 1) > 1e-6:
            raise fail(answer.situation, f"{label} sums to {total:.9g}, not 1")


def plans_ahead(subject: Subject) -> None:
    """A plan's stretches end one after another, all in the future; the first is the proposal."""
    for answer, proposal in _proposals(subject):
        ends = [answer.run.tokens, *(until for until, _ in proposal.plan)]
        if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
            text = f"the plan's stretches end at {ends[1:]}, now is {ends[0]}"
            raise fail(answer.situation, text)
        if proposal.plan and total_variation(proposal.plan[0][1], proposal.weights) > 1e-6:
            raise fail(answer.situation, "the plan's first stretch isn't the proposed mixture")


def within_bounds(subject: Subject) -> None:
    """The guards let it through, and what they let through is within the limits."""
    for answer, proposal in _proposals(subject):
        run = answer.run
        # whether it is time for a change is the guards' business
        settings = GuardSettings(**run.limits.model_dump() | {"dwell": 0})
        context = GuardContext(
            sources=run.sources,
            weights=in_force(run),
            drawn={name: float(source.drawn) for name, source in run.sources.items()},
            tokens=run.tokens,
            budget=run.budget or 10**18,
            horizon=run.every,
            declared=proposal.declared,
        )
        result = apply_guards(proposal.weights, proposal.plan, context, settings)
        if result.verdict == "refused":
            why = next(note.detail for note in result.notes if note.action == "blocked")
            raise fail(answer.situation, f"the guards refuse the proposal: {why}")
        over = [n for n, w in (result.weights or {}).items() if w > settings.cap + 1e-6]
        if over:
            raise fail(answer.situation, f"{over[0]} is above the cap after the guards")


def standby_stays_out(subject: Subject) -> None:
    """A source on standby gets no weight unless the options name it or one of its tags."""
    for answer, label, weights in _mixtures(subject):
        for name, source in answer.run.sources.items():
            share = weights.get(name, 0.0)
            asked = any(subject.was_told_of(word) for word in (name, *source.tags, "standby"))
            waiting = source.standby and answer.run.weights.get(name, 0.0) == 0
            if waiting and share > 1e-9 and not asked:
                raise fail(answer.situation, f"{label} gives {name}, on standby, {share:.3g}")


def same_for_two_instances(subject: Subject) -> None:
    """Two instances answer the same observation alike: a run that restarts decides the same."""
    for situation in (FIRST, ORDINARY, ITEMS):
        again = _decide(subject.build(), subject.observation(situation))
        _alike(subject.answer(situation), again, "another instance answers differently")


def same_when_asked_again(subject: Subject) -> None:
    """One instance keeps nothing from one call to the next: the history is all there is."""
    policy = subject.build()
    for situation in (ORDINARY, FIRST, ORDINARY, FIRST):
        again = _decide(policy, subject.observation(situation))
        _alike(subject.answer(situation), again, "what it saw before changes its answer")


def observation_untouched(subject: Subject) -> None:
    """The observation is the same after the decision as before."""
    for situation in (FIRST, ORDINARY, ITEMS, "NaN and infinite scores"):
        observation = subject.observation(situation)
        before = observation.model_dump_json()
        _decide(subject.build(), observation)
        if observation.model_dump_json() != before:
            raise fail(situation, "decide() changed the observation it was given")


def crosses_processes(subject: Subject) -> None:
    """Observation and answer travel as JSON and arrive as they left."""
    for situation in (FIRST, ORDINARY):
        sent = subject.observation(situation).model_dump_json()
        again = _decide(subject.build(), Observation.model_validate_json(sent))
        _alike(subject.answer(situation), again, "an observation that came as JSON is another")
    for answer in subject.answers():
        if answer.sound and reply_from_json(reply_to_json(answer.reply)) != answer.reply:
            raise fail(answer.situation, "the answer is another after its trip through JSON")


def no_global_randomness(subject: Subject) -> None:
    """Unseeded randomness changes nothing, and the process's own generators stay as they are."""
    for seed in (1, 2):
        with _shaken(seed=seed):
            before = _generator_states()
            again = _decide(subject.build(), subject.observation(ORDINARY))
            after = _generator_states()
        _alike(subject.answer(ORDINARY), again, "global random state changes its answer")
        drawn = [name for name in before if before[name] != after.get(name)]
        if drawn:
            raise fail(ORDINARY, f"decide() draws from {drawn[0]}'s global generator")


def no_clock(subject: Subject) -> None:
    """Another time of day changes nothing."""
    with _shaken(clock=YEARS):
        again = _decide(subject.build(), subject.observation(ORDINARY))
    _alike(subject.answer(ORDINARY), again, "the time of day changes its answer")


def _decide(policy: Policy, observation: Observation) -> object:
    """Its answer, or what it raised."""
    try:
        return policy.decide(observation)
    except Exception as error:
        return error


def _alike(answer: Answered, again: object, problem: str) -> None:
    first = answer.reply if answer.error is None else answer.error
    if _shown(first) != _shown(again):
        raise fail(answer.situation, f"{problem} ({_short(first)} then {_short(again)})")


def _shown(reply: object) -> str:
    # by text: a NaN in an answer differs from itself, and other checks look at those
    return reply.model_dump_json() if isinstance(reply, Reply) else repr(reply)


def _short(reply: object) -> str:
    if isinstance(reply, Proposal):
        weights = ", ".join(f"{n} {w:.4g}" for n, w in list(reply.weights.items())[:4])
        return f"proposal: {weights}"
    return f"{reply.verdict}: {reply.reason}" if isinstance(reply, Hold) else repr(reply)


def _generator_states() -> dict[str, str]:
    """The state of every global generator that is loaded."""
    states = {"random": repr(random.getstate())}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        # the whole state, which repr() of an array would shorten
        name, keys, *rest = numpy.random.get_state()
        states["numpy.random"] = repr((name, keys.tolist(), rest))
    return states


@contextmanager
def _shaken(*, seed: int | None = None, clock: float = 0.0) -> Iterator[None]:
    """Global generators seeded anew, or the time of day set forward; restored at the end."""
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    real, real_ns = time.time, time.time_ns
    if seed is not None:
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
    time.time = lambda: real() + clock
    time.time_ns = lambda: real_ns() + int(clock * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = real, real_ns
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)

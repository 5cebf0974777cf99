"""The checks of the conformance suite: what a policy must do, in every situation.

A check raises ``AssertionError`` with one line that names the situation and what was found.


What a decision must not depend on: global random generators and the time of day.
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
    reply_from_json,
    reply_to_json,
)
from mixloop.policies.mixture import in_force, total_variation

from .policy_runner import Answered, Subject

ORDINARY = "an ordinary run"
ITEMS = "per-item outcomes"
FIRST = "a first evaluation"


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
    found = subject.answer(situation)
    if found.error is not None:
        if found.refusal and isinstance(found.error, PolicyError):
            return
        raise fail(situation, f"raised {type(found.error).__name__}: {found.error}")
    if not isinstance(found.reply, Proposal | Hold):
        kind = type(found.reply).__name__
        raise fail(situation, f"decide() returned {kind}, not a Proposal or a Hold")
    if not found.reply.reason.strip():
        raise fail(situation, "the answer gives no reason")


def fits_an_ordinary_run(subject: Subject) -> None:
    """Its options fit the run it is shown: else nothing below would be tested."""
    refusal = subject.answer(ORDINARY).refusal
    if refusal:
        raise AssertionError(f"its options name what the run hasn't got: {refusal}")
    survives(ORDINARY, subject)


def known_sources(subject: Subject) -> None:
    """Every mixture names sources of the run only."""
    for found, label, weights in _mixtures(subject):
        strange = [name for name in weights if name not in found.seen.sources]
        if strange:
            raise fail(found.situation, f"{label} names {strange[0]!r}, which is no source there")


def on_the_simplex(subject: Subject) -> None:
    """Every mixture's shares are finite, not negative and sum to 1 (to 1e-6)."""
    for found, label, weights in _mixtures(subject):
        wrong = {n: w for n, w in weights.items() if not math.isfinite(w) or w < 0}
        if wrong:
            name, weight = next(iter(wrong.items()))
            raise fail(found.situation, f"{label} gives {name} {weight}, which is no share")
        total = fsum(weights.values())
        if abs(total - 1) > 1e-6:
            raise fail(found.situation, f"{label} sums to {total:.9g}, not 1")


def plans_ahead(subject: Subject) -> None:
    """A plan's stretches end one after another, all in the future; the first is the proposal."""
    for found in subject.answers():
        plan = found.reply.plan if found.sound and isinstance(found.reply, Proposal) else ()
        ends = [found.seen.tokens, *(until for until, _ in plan)]
        if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
            raise fail(found.situation, f"the plan's stretches end at {ends[1:]}, now is {ends[0]}")
        if plan and total_variation(plan[0][1], found.reply.weights) > 1e-6:
            raise fail(found.situation, "the plan's first stretch isn't the proposed mixture")


def within_bounds(subject: Subject) -> None:
    """The guards let it through, and what they let through is within the limits."""
    for found in subject.answers():
        if not (found.sound and isinstance(found.reply, Proposal)):
            continue
        context, settings = _guarding(found.seen, found.reply.declared)
        result = apply_guards(found.reply.weights, found.reply.plan, context, settings)
        if result.verdict == "refused":
            why = next(note.detail for note in result.notes if note.action == "blocked")
            raise fail(found.situation, f"the guards refuse the proposal: {why}")
        if result.weights is None:
            continue
        over = [n for n, w in result.weights.items() if w > settings.cap + 1e-6]
        if over:
            raise fail(found.situation, f"{over[0]} is above the cap after the guards")


def standby_stays_out(subject: Subject) -> None:
    """A source on standby gets no weight unless the options name it or one of its tags."""
    for found, label, weights in _mixtures(subject):
        for name, source in found.seen.sources.items():
            given = weights.get(name, 0.0)
            asked = any(subject.was_told_of(word) for word in (name, *source.tags, "standby"))
            if source.standby and given > 1e-9 and found.seen.weights.get(name, 0.0) == 0:
                if asked:
                    continue
                raise fail(found.situation, f"{label} gives {name}, on standby, {given:.3g}")


def same_for_two_instances(subject: Subject) -> None:
    """Two instances answer the same observation alike: a run that restarts decides the same."""
    for situation in (FIRST, ORDINARY, ITEMS):
        first = subject.answer(situation)
        again = _decide(subject.build(), subject.observation(situation))
        _alike(first, again, "another instance answers differently")


def same_when_asked_again(subject: Subject) -> None:
    """One instance keeps nothing from one call to the next: the history is all there is."""
    policy = subject.build()
    for situation in (ORDINARY, FIRST, ORDINARY, FIRST):
        again = _decide(policy, subject.observation(situation))
        _alike(subject.answer(situation), again, "what it saw before changes its answer")


def observation_untouched(subject: Subject) -> None:
    """The observation is the same after the decision as before."""
    for situation in (FIRST, ORDINARY, ITEMS, "NaN and infinite scores"):
        seen = subject.observation(situation)
        before = seen.model_dump_json()
        _decide(subject.build(), seen)
        if seen.model_dump_json() != before:
            raise fail(situation, "decide() changed the observation it was given")


def crosses_processes(subject: Subject) -> None:
    """Observation and answer travel as JSON and arrive as they left."""
    for situation in (FIRST, ORDINARY):
        seen = subject.observation(situation)
        arrived = Observation.model_validate_json(seen.model_dump_json())
        found = subject.answer(situation)
        _alike(
            found, _decide(subject.build(), arrived), "an observation that came as JSON is another"
        )
    for found in subject.answers():
        if found.sound and reply_from_json(reply_to_json(found.reply)) != found.reply:
            raise fail(found.situation, "the answer is another after its trip through JSON")


def no_global_randomness(subject: Subject) -> None:
    """Unseeded randomness changes nothing, and the process's own generators stay as they are."""
    found = subject.answer(ORDINARY)
    for seed in (1, 2):
        with shaken(seed=seed):
            before = outside_state()
            again = _decide(subject.build(), subject.observation(ORDINARY))
            after = outside_state()
        _alike(found, again, "global random state changes its answer")
        changed = [name for name in before if before[name] != after.get(name)]
        if changed:
            raise fail(ORDINARY, f"decide() draws from {changed[0]}'s global generator")


def no_clock(subject: Subject) -> None:
    """Another time of day changes nothing."""
    found = subject.answer(ORDINARY)
    with shaken(clock=OTHER):
        again = _decide(subject.build(), subject.observation(ORDINARY))
    _alike(found, again, "the time of day changes its answer")


def _decide(policy: Policy, seen: Observation) -> object:
    """Its answer, or what it raised."""
    try:
        return policy.decide(seen)
    except Exception as error:
        return error


def _alike(found: Answered, again: object, problem: str) -> None:
    first = found.reply if found.error is None else found.error
    if _shown(first) != _shown(again):
        raise fail(found.situation, f"{problem} ({_short(first)} then {_short(again)})")


def _shown(reply: object) -> str:
    # by text: a NaN in an answer differs from itself, and other checks look at those
    return reply.model_dump_json() if isinstance(reply, Proposal | Hold) else repr(reply)


def _short(reply: object) -> str:
    if isinstance(reply, Proposal):
        weights = ", ".join(f"{n} {w:.4g}" for n, w in list(reply.weights.items())[:4])
        return f"proposal: {weights}"
    return f"{reply.verdict}: {reply.reason}" if isinstance(reply, Hold) else repr(reply)


def _mixtures(subject: Subject) -> Iterator[tuple[Answered, str, Mapping[str, float]]]:
    """Every mixture it answered with: where, what of the answer, the mixture."""
    for found in subject.answers():
        if found.sound and isinstance(found.reply, Proposal):
            yield found, "the proposal", found.reply.weights
            for until, weights in found.reply.plan:
                yield found, f"the plan to {until}", weights


def _guarding(seen: Observation, declared: bool) -> tuple[GuardContext, GuardSettings]:
    limits = seen.limits.model_dump()
    limits["dwell"] = 0  # whether it is time for a change is the guards' business
    context = GuardContext(
        sources=seen.sources,
        weights=in_force(seen),
        drawn={n: float(s.drawn) for n, s in seen.sources.items()},
        tokens=seen.tokens,
        budget=seen.budget or 10**18,
        horizon=seen.every,
        declared=declared,
    )
    return context, GuardSettings(**limits)


OTHER = 987_654_321.0
"""Seconds by which the time of day is set forward (31 years)."""


def outside_state() -> dict[str, str]:
    """The state of every global generator that is loaded."""
    found = {"random": repr(random.getstate())}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        # the whole state, which repr() of an array would shorten
        name, keys, *rest = numpy.random.get_state()
        found["numpy.random"] = repr((name, keys.tolist(), rest))
    return found


@contextmanager
def shaken(*, seed: int | None = None, clock: float = 0.0) -> Iterator[None]:
    """Global generators seeded anew, or the time of day set forward; restored at the end."""
    kept = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    kept_numpy = numpy.random.get_state() if numpy is not None else None
    real, real_ns = time.time, time.time_ns
    if seed is not None:
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed)
    if clock:
        time.time = lambda: real() + clock
        time.time_ns = lambda: real_ns() + int(clock * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = real, real_ns
        random.setstate(kept)
        if numpy is not None:
            numpy.random.set_state(kept_numpy)

"""Is the run significantly worse than if the policy had left the mixture alone?

Every change of mixture that came into force splits the scores in two: those before it say what was
to be expected, the newest few after it what came. Three hypotheses, corrected for their number
(Holm):

- the objective lies below the level it had;
- it lies behind the course it was on, damped;
- a benchmark lies below the level it had, while the objective isn't ahead of its own. A loss that
  the objective is paid for is a trade that it allows; ``max_drop`` says where that ends.

One bad evaluation is the trajectory's noise more often than not, so two in a row must say the same.
The error is shared among the evaluations of the whole run. Where the change has a receipt (a twin
that went on without it), that decides instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mixloop.policies.interface import Observation

from .confidence_sequence import Receipt
from .score_courses import AFTER, OBJECTIVE, Course, Lag, courses
from .significance import holm


@dataclass(frozen=True)
class Change:
    """A change of mixture among the evaluations.

    Attributes:
        decision: the one that asked for it.
        first, good: indices of the first and last evaluation that tell of what went before.
        back_to: the mixture in force at ``good``.
    """

    decision: str
    first: int
    good: int
    back_to: Mapping[str, float]


@dataclass(frozen=True)
class Fall:
    """A significant loss since a change, seen twice running.

    ``gain`` is that against what was expected (``against``), so it is negative; ``z`` is its normal
    score at the newest evaluation, ``z_before`` at the one before.
    """

    what: str
    metric: str
    against: str
    change: Change
    gain: float
    stderr: float
    z: float
    z_before: float

    def __str__(self) -> str:
        return (
            f"{self.what} is {-self.gain:.3g} ± {self.stderr:.2g} {self.metric} below "
            f"{self.against} before {self.change.decision}, twice running "
            f"(z {self.z_before:.2g}, {self.z:.2g})"
        )


def worst_fall(
    observation: Observation,
    changes: Sequence[Change],
    level: float,
    receipts: Mapping[str, Sequence[Receipt]] | None = None,
) -> Fall | None:
    """The gravest significant loss since one of these changes; None where there is none.

    Args:
        observation: the run so far.
        changes: those that may be to blame.
        level: probability of a false alarm in a whole run.
        receipts: by decision, what its twin said at each of its points, oldest first.
    """
    newest = len(observation.evaluations) - 1
    judged = [change for change in changes if change.good + 2 <= newest]
    if not judged:
        return None
    newly = [course for course in courses(observation) if course.places[-1] == newest]
    # means over AFTER evaluations overlap: so many fewer are independent
    alone = level * min(1.0, AFTER / _evaluations_in(observation))
    found: list[Fall] = []
    for change in judged:
        points = (receipts or {}).get(change.decision, ())
        if len(points) >= 2:
            found += _by_receipt(change, points)
        else:
            found += _by_course(observation, newly, change, alone)
    return min(found, key=lambda fall: fall.z, default=None)


def _evaluations_in(observation: Observation) -> int:
    """How many evaluations the whole run has, as far as that is known."""
    have = len(observation.evaluations)
    return max(have, observation.budget // observation.every if observation.every else 0)


def _by_receipt(change: Change, receipts: Sequence[Receipt]) -> Iterator[Fall]:
    """The twin without the change is ahead, anytime-valid, at its two newest points."""
    earlier, now = receipts[-2:]
    if all(receipt.high < 0 for receipt in (earlier, now)):
        yield Fall(
            OBJECTIVE,
            now.metric,
            "its twin, which went on as",
            change,
            now.effect,
            now.stderr,
            now.effect / now.stderr,
            earlier.effect / earlier.stderr,
        )


def _by_course(
    observation: Observation, found: Sequence[Course], change: Change, level: float
) -> Iterator[Fall]:
    tests: list[tuple[Course, bool, Lag, Lag]] = []
    for course in found:
        for line in (False, True) if course.what == OBJECTIVE else (False,):
            pair = [
                course.lag(observation, change.first, change.good, back, line) for back in (0, 1)
            ]
            if pair[0] is not None and pair[1] is not None:
                tests.append((course, line, pair[0], pair[1]))
    whole = [now.gain for course, _, now, _ in tests if course.what == OBJECTIVE]
    paid = bool(whole) and min(whole) > 0
    stand = holm([min(-now.z, -earlier.z) for _, _, now, earlier in tests], level)
    for (course, line, now, earlier), stands in zip(tests, stand, strict=True):
        if stands and (course.what == OBJECTIVE or not paid or _dropped(observation, course, now)):
            against = "the course it was on" if line else "its level"
            yield Fall(
                course.what,
                course.metric,
                against,
                change,
                now.gain,
                now.stderr,
                now.z,
                earlier.z,
            )


def _dropped(observation: Observation, course: Course, lag: Lag) -> bool:
    """Whether a benchmark's loss is beyond what its goal allows."""
    limit = observation.goal(course.what).max_drop
    return limit is not None and -lag.gain > limit

"""How the objective and each benchmark went along the run, and how far off what was expected.

What was expected after an evaluation is either the *level* before it, or the *course* before it: a
line over ``tokens^-1/4`` (nearly straight for a power law), of which only a part is expected to go
on, as learning slows down and a line over-promises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING

from mixloop.common.paired import normal_score
from mixloop.policies.interface import (
    BenchmarkScore,
    Metric,
    MissingScore,
    Observation,
    finite_metric,
)

from .confidence_sequence import CORRELATION, mean_variance
from .objective import objective_metric, objective_weights
from .trajectory_noise import AUTOCORRELATION, POWER, Jitter, trajectory_noise

if TYPE_CHECKING:  # numpy is loaded where arrays are made: a policy's suite needs none
    import numpy as np
    from numpy.typing import NDArray

    from mixloop.policies.mixture import Array

    Places = NDArray[np.intp]
    Flags = NDArray[np.bool_]

BEFORE = 8  # newest evaluations before a change that its course is drawn through
LEVEL = 4  # of those, how many say the level
LINE = 6  # fewest that a course can be drawn through
AFTER = 6  # newest evaluations after it that are averaged
DAMPING = 0.5  # part of the pace before a change that is expected to go on
# what second differences hide of such jitter, against what trajectory_noise makes up for
HIDDEN = (1 - 4 / 3 * AUTOCORRELATION) / (1 - 4 / 3 * CORRELATION)
YOUNG = 0.1  # part of the budget
WORTH = 2.0  # standard errors below which a loss isn't looked into
OBJECTIVE = "the objective"


@dataclass(frozen=True)
class Lag:
    """How far ahead of what was expected (negative: behind), with its standard error and z.

    ``newest`` is how far ahead the newest score is by itself, in its own standard errors.
    """

    gain: float
    stderr: float
    z: float
    newest: float


@dataclass(frozen=True)
class Course:
    """A score along the run, higher is better, oldest first.

    Attributes:
        what: :data:`OBJECTIVE`, or a benchmark.
        parts: benchmarks in it, and what each counts.
        places: indices of the evaluations that have it.
        steady: which of them don't lie in the warm-up; ``settled``: nor in the decay, nor in the
            first tenth of the budget, where learning is fastest and least regular.
        noise: standard deviation of one of them about the run's smooth course, items' part
            included; resting on ``df`` degrees of freedom, 0 where it isn't known.
    """

    what: str
    metric: str
    parts: Mapping[str, float]
    places: Places
    tokens: Array
    values: Array
    steady: Flags
    settled: Flags
    noise: float
    df: float

    def lag(
        self, observation: Observation, first: int, good: int, back: int, line: bool
    ) -> Lag | None:
        """The newest scores against what those from ``first`` to ``good`` let expect.

        Args:
            observation: The one that this is a course of.
            first, good: indices of evaluations.
            back: how many of the newest scores are left out.
            line: whether the course before goes on, else the level.

        Returns:
            None where there is too little to tell.
        """
        import numpy as np

        end = len(self.places) - back
        places = self.places[:end]
        after = np.flatnonzero(places > good)[-AFTER:]
        usable = self.settled if line else self.steady
        before = np.flatnonzero((places >= first) & (places <= good) & usable[:end])[-BEFORE:]
        if self.df <= 0 or not len(after) or len(before) < (LINE if line else 1):
            return None
        level = before[-LEVEL:]
        pace, reach, spread = self._pace(before, after) if line else (0.0, 0.0, 1.0)
        gain = float(self.values[after].mean() - self.values[level].mean() - pace * reach)
        parts = _mean_variance(len(after)) + _mean_variance(len(level)) + reach**2 / spread
        stderr = self.noise * math.sqrt(parts * HIDDEN)
        if gain < -WORTH * stderr:  # else it says nothing, whatever the items' error
            items = self._items_error(observation, int(places[level[-1]]), int(places[-1]))
            stderr = math.hypot(stderr, items)
        t = gain / stderr if stderr > 0 else math.copysign(math.inf, gain) if gain else 0.0
        off = float(self.values[after[-1]] - self.values[after].mean()) + gain
        newest = (
            off / (self.noise * math.sqrt(1 + parts))
            if self.noise > 0
            else math.copysign(math.inf, off)
        )
        return Lag(gain, stderr, normal_score(t, self.df), newest)

    def _pace(self, before: Places, after: Places) -> tuple[float, float, float]:
        """The pace before, how far it is expected to go on, and what it rests on.

        Learning slows down: of the slower of the whole stretch's pace and its second half's, the
        part ``DAMPING`` goes on, times the second half's pace over the first's.
        """
        import numpy as np

        x = -((self.tokens / self.tokens[before[-1]]) ** POWER)  # grows with tokens, to 0
        half = len(before) // 2
        pace, older, newer = (
            _slope(x[part], self.values[part]) for part in (before, before[:half], before[half:])
        )
        slower, part = min(pace, newer), 1.0
        if slower > 0:
            part = DAMPING * min(1.0, newer / older if older > 0 else 1.0)
        span = x[before[-1]] - x[before[0]]  # a line is carried on no further than it was drawn
        ahead = min(x[after].mean(), x[before[-1]] + span)
        reach = part * float(ahead - x[before[-LEVEL:]].mean())
        return slower, reach, float(np.square(x[before] - x[before].mean()).sum())

    def _items_error(self, observation: Observation, older: int, newer: int) -> float:
        """What other items might have shown of the difference; 0 where no outcomes are kept.

        The items are the same at every evaluation: no mean over evaluations makes it smaller.
        """
        total = 0.0
        for benchmark, part in self.parts.items():
            try:
                difference = observation.difference(benchmark, older, newer, self.metric)
            except MissingScore:
                continue
            if difference.paired and math.isfinite(difference.stderr):
                total += (part * difference.stderr) ** 2
        return math.sqrt(total)


def _slope(x: Array, y: Array) -> float:
    off = x - x.mean()
    return float(off @ y / (off @ off))


def _mean_variance(n: int) -> float:
    return mean_variance(n, CORRELATION)


def courses(observation: Observation) -> list[Course]:
    """The objective's course, and that of each benchmark that counts in it."""
    parts = {name: part for name, part in objective_weights(observation).items() if part > 0}
    if not parts:
        return []
    metric = objective_metric(observation)
    pooled = _pooled(observation, parts, metric)
    found = [_course(pooled, OBJECTIVE, metric, parts)]
    if len(parts) > 1:
        found += [
            _course(observation, name, observation.metric_for(name), {name: 1.0}) for name in parts
        ]
    return [course for course in found if course is not None]


def objective_jitter(observation: Observation) -> Jitter:
    """The trajectory's noise in the objective, that of its items' scores included."""
    parts = {name: part for name, part in objective_weights(observation).items() if part > 0}
    metric = objective_metric(observation)
    return trajectory_noise(_pooled(observation, parts, metric), OBJECTIVE, metric)


def _pooled(observation: Observation, parts: Mapping[str, float], metric: str) -> Observation:
    """The objective as if it were one benchmark; evaluations without all its parts lack it.

    It states no error over items: its noise is all that its course shows.
    """
    evaluations = []
    for evaluation in observation.evaluations:
        found = [(part, finite_metric(evaluation, n, metric)) for n, part in parts.items()]
        scores = {}
        if all(entry is not None for _, entry in found):
            value = -fsum(part * entry.loss for part, entry in found if entry is not None)
            scores = {OBJECTIVE: BenchmarkScore(metrics={metric: Metric(value=value)})}
        evaluations.append(evaluation.model_copy(update={"benchmarks": scores}))
    changed = {"evaluations": tuple(evaluations), "steering": {OBJECTIVE: metric}}
    return observation.model_copy(update=changed)


def _course(
    observation: Observation, what: str, metric: str, parts: Mapping[str, float]
) -> Course | None:
    scored = list(_scored(observation, what, metric))
    if len(scored) < 2:
        return None
    import numpy as np

    jitter = trajectory_noise(observation, what, metric)
    known = jitter.n > 0 and math.isfinite(jitter.total)
    evaluations = [observation.evaluations[place] for place, _ in scored]
    return Course(
        what=what,
        metric=metric,
        parts=parts,
        places=np.array([place for place, _ in scored]),
        tokens=np.array([evaluation.tokens for evaluation in evaluations], dtype=float),
        values=np.array([value for _, value in scored]),
        steady=np.array([e.phase != "warmup" for e in evaluations]),
        settled=np.array(
            [
                e.phase not in ("warmup", "decay") and e.tokens >= YOUNG * observation.budget
                for e in evaluations
            ]
        ),
        noise=jitter.total if known else math.nan,
        df=jitter.df if known else 0.0,
    )


def _scored(observation: Observation, what: str, metric: str) -> Iterator[tuple[int, float]]:
    for place, evaluation in enumerate(observation.evaluations):
        entry = finite_metric(evaluation, what, metric)
        if entry is not None and evaluation.tokens > 0:
            yield place, -entry.loss

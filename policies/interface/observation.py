"""What a policy may look at: the whole run so far, immutable and able to travel as JSON.

Units: ``tokens`` are training tokens, weights are shares of them, ``bits_per_byte`` is bits of the
gold answer per UTF-8 byte. Evaluations and decisions are oldest first. A policy is a pure function
of this object and its options, so everything it needs is here, the seed included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from mixloop.common.paired import (
    Difference,
    paired_difference,
    pooled_cluster,
    unpaired_difference,
    weighted_mean,
)

from .checkpoint_scores import (
    BITS_PER_BYTE,
    FROZEN,
    Evaluation,
    Metric,
    MissingScore,
    Phase,
    find_metric,
    finite_metric,
    pooled_items,
    stated,
)
from .experiment_result import ExperimentResult


class _Frozen(BaseModel):
    model_config = FROZEN


class Source(_Frozen):
    """A corpus: its unique tokens, its tags, and what was drawn from it so far."""

    unique_tokens: int
    tags: tuple[str, ...] = ()
    standby: bool = False
    drawn: int = 0
    epochs: float = 0.0


class Goal(_Frozen):
    """What the run wants of one benchmark.

    ``weight`` is its part in the objective, relative to the others'. Past ``target`` (a value of
    the steering metric) further gains count for nothing. ``max_drop`` (in the same unit, 0 or
    more) is how far it may fall below its best evaluation before the mixture is to be repaired.
    """

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    target: float | None = Field(None, allow_inf_nan=False)
    max_drop: float | None = Field(None, ge=0, allow_inf_nan=False)


class Limits(_Frozen):
    """The bounds that the guards will put on a proposal, for policies that plan within them.

    ``max_epochs`` None: not enforced. ``dwell`` in training tokens.
    """

    max_epochs: float | None = None
    max_change: float = 1.0
    dwell: int = 0
    floor: float = 0.0
    cap: float = 1.0


class PastDecision(_Frozen):
    """A decision of this run: ``verdict`` in the words of the history, ``rule`` what caused it."""

    id: str
    step: int
    tokens: int
    verdict: str
    generation: int | None = None
    weights_before: dict[str, float] = {}
    weights_after: dict[str, float] | None = None
    rule: str | None = None
    evidence: dict[str, Any] = {}


class Observation(_Frozen):
    """Everything known when a decision is due.

    ``in_force`` says whether the last order is already what the trainer consumes; ``weights`` are
    the mixture in force, ``plan`` what the order in force does later: stretches ``(until_tokens,
    weights)`` as in a proposal, empty when it just goes on. ``steering`` names each configured
    benchmark with the metric that steers; ``watch`` the benchmarks that may veto but never steer.
    ``every`` are the training tokens between two evaluations, 0 if that isn't known. ``decay`` are
    those at the end of the budget in which the learning rate decays, None if that isn't known.
    ``experiments`` are those of this run, oldest first, running ones among them;
    ``receipts`` are twins of its changes, which went on without them, those that are done;
    ``experiment_tokens`` what is left to spend on further ones, 0 where none may be asked for.
    """

    run: str = ""
    step: int = 0
    tokens: int = 0
    budget: int = 0
    phase: Phase | None = None
    seed: int = 0
    generation: int = 0
    in_force: bool = True
    sources: dict[str, Source]
    weights: dict[str, float]
    plan: tuple[tuple[int, dict[str, float]], ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    every: int = 0
    decay: int | None = None
    steering: dict[str, str] = {}
    watch: tuple[str, ...] = ()
    objective: dict[str, Goal] = {}
    limits: Limits = Limits()
    decisions: tuple[PastDecision, ...] = ()
    experiments: tuple[ExperimentResult, ...] = ()
    receipts: tuple[ExperimentResult, ...] = ()
    experiment_tokens: int = 0

    def metric_for(self, benchmark: str) -> str:
        """The metric that steers this benchmark; bits per byte when none is named."""
        return self.steering.get(benchmark, BITS_PER_BYTE)

    def benchmarks(self) -> frozenset[str]:
        """Every benchmark that is configured or was ever scored."""
        scored = (name for evaluation in self.evaluations for name in evaluation.benchmarks)
        return frozenset(self.steering) | frozenset(scored)

    def steering_benchmarks(self) -> list[str]:
        """The benchmarks that steer: configured ones, else every one scored, without ``watch``."""
        names = list(self.steering) or sorted(self.benchmarks())
        return [name for name in names if name not in self.watch]

    def goal(self, benchmark: str) -> Goal:
        """The goal set for a benchmark; weight 1 without target and floor where none is."""
        return self.objective.get(benchmark) or Goal()

    def interventions(self) -> list[PastDecision]:
        """The decisions that changed the mixture."""
        return [decision for decision in self.decisions if decision.verdict == "intervene"]

    def evaluation(self, which: int | Evaluation) -> Evaluation:
        """An evaluation by index (negative from the newest), or the one given.

        Raises:
            MissingScore: when there is none at this index.
        """
        if isinstance(which, Evaluation):
            return which
        try:
            return self.evaluations[which]
        except IndexError:
            have = len(self.evaluations)
            raise MissingScore(f"no evaluation {which}: the run has {have}") from None

    def scored(self, benchmark: str, metric: str | None = None) -> list[int]:
        """Indices of the evaluations that have a finite score of this benchmark, oldest first."""
        name = metric or self.metric_for(benchmark)
        indexed = enumerate(self.evaluations)
        return [i for i, e in indexed if finite_metric(e, benchmark, name) is not None]

    def difference(
        self,
        benchmark: str,
        older: int | Evaluation,
        newer: int | Evaluation,
        metric: str | None = None,
    ) -> Difference:
        """How much better ``newer`` is than ``older`` on one benchmark, paired over its items.

        The standard error is cluster-robust over MMLU's subjects. Without per-item outcomes on a
        side, the two standard errors are added instead (``paired`` is then false).

        Raises:
            MissingScore: when a side lacks the benchmark or metric, or no item is shared.
        """
        name = metric or self.metric_for(benchmark)
        sides = [self.evaluation(older), self.evaluation(newer)]
        old, new = (find_metric(side, benchmark, name) for side in sides)
        if all(_has_items(side.benchmarks[benchmark].items, name) for side in sides):
            return self.pooled_difference([benchmark], older, newer, name)
        return unpaired_difference(
            (old.value, stated(old.stderr), old.n),
            (new.value, stated(new.stderr), new.n),
            new.higher_is_better,
            metric=name,
            benchmark=benchmark,
        )

    def pooled_difference(
        self,
        benchmarks: Sequence[str],
        older: int | Evaluation,
        newer: int | Evaluation,
        metric: str | None = None,
    ) -> Difference:
        """One paired difference over the items of several benchmarks together.

        Raises:
            MissingScore: when a side lacks a benchmark, the metric or its items.
        """
        name = metric or self.common_metric(benchmarks)
        old, new = self.evaluation(older), self.evaluation(newer)
        better = find_metric(new, benchmarks[0], name).higher_is_better
        label = "+".join(benchmarks)
        before, after = (pooled_items(side, benchmarks, name) for side in (old, new))
        try:
            return paired_difference(before, after, better, metric=name, benchmark=label)
        except ValueError as error:
            steps = f"steps {old.step} and {new.step}"
            raise MissingScore(f"{error} ({steps})") from None

    def pooled_metric(
        self, benchmarks: Sequence[str], which: int | Evaluation, metric: str | None = None
    ) -> Metric:
        """The metric over the items of several benchmarks together; of one, as it was reported.

        Raises:
            MissingScore: when a benchmark, the metric or (to pool) its items are missing.
        """
        name = metric or self.common_metric(benchmarks)
        evaluation = self.evaluation(which)
        first = find_metric(evaluation, benchmarks[0], name)
        if len(benchmarks) == 1:
            return first
        items = pooled_items(evaluation, benchmarks, name)
        value, stderr = weighted_mean(
            list(items.values()), [pooled_cluster(item) for item in items]
        )
        better = first.higher_is_better
        return Metric(value=value, stderr=stderr, n=len(items), higher_is_better=better)

    def common_metric(self, benchmarks: Sequence[str]) -> str:
        """The steering metric these benchmarks share, else bits per byte."""
        names = {self.metric_for(benchmark) for benchmark in benchmarks}
        return names.pop() if len(names) == 1 else BITS_PER_BYTE


def _has_items(items: Mapping[str, Mapping[str, float]], metric: str) -> bool:
    return any(math.isfinite(outcome.get(metric, math.nan)) for outcome in items.values())

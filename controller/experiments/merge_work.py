"""Merges of an experiment's experts: the mixture that scores best, its errors, and MixMin's.

An expert is a branch on one source alone. Its delta is kept in two parts, what its first half added
and what its second did, so that three fits cost one set of files: to both, and to each half scaled
to the length of the whole. How far the halves' mixtures lie apart is the noise of the experts' own
few windows, which no item shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mixloop.common.estimates import ratio_of_totals
from mixloop.policies.interface import (
    BITS_PER_BYTE,
    BenchmarkScore,
    MergeDesign,
    MergeFit,
    Metric,
    ScoredBranch,
    score_difference,
)
from mixloop.policies.mixture import Array
from mixloop.policies.surrogates import fit_merge

from .branch_work import TrainedBranch
from .spec import ExperimentSpec
from .workspace import Workspace

if TYPE_CHECKING:
    from mixloop.evals import Outcomes
    from mixloop.evals.merging import Merges

Part = Literal["whole", "first", "second"]
OTHER: dict[Part, Part] = {"whole": "whole", "first": "second", "second": "first"}
STEPS = 25
DIFFERENCE = 0.02  # of a share, where a model gives no gradients
SINGLE = 1 - 1e-6  # share of one source from which a branch is its expert
EARLIEST, LATEST = 0.05, 0.95  # a part below which scaling a half up is only noise

Coefficients = dict[str, float]


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


class MergeWork:
    """Fits and scores the merges of an experiment's experts.

    Args:
        spec: the experiment; it has a merge design.
        place: its folder, with the experts' deltas.
        experts: at least two.
        merges: of those deltas, named as `coefficients` names them.
        say: hears what a person should know.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        place: Workspace,
        experts: Sequence[Expert],
        merges: Merges,
        say: Callable[[str], None],
    ) -> None:
        assert spec.merge is not None
        self._design: MergeDesign = spec.merge
        self._place = place
        self._experts = experts
        self._merges = merges
        self._say = say
        self._sources = [expert.source for expert in experts]
        weighed = _normalised({name: spec.objective.get(name, 0.0) for name in merges.benchmarks})
        # what counts for nothing takes no pass
        self._objective = {name: share for name, share in weighed.items() if share > 0}
        shares = _normalised({name: spec.weights.get(name, 0.0) for name in self._sources})
        self.present = np.array([shares[name] for name in self._sources])

    # -- the fits ----------------------------------------------------------------------------

    def fit(self, part: Part) -> MergeFit:
        """The mixture fitted to a part of the experts' data.

        Its gains are measured in merges of the *other* half's data, where the fit was to a half:
        what it owes to chance in its own windows isn't among them.
        """
        return self._place.made(
            self._place.folder / f"fit-{part}.json", MergeFit, partial(self._fit, part)
        )

    def _fit(self, part: Part) -> MergeFit:
        design = self._design
        prior = np.array([design.prior.get(name, 0.0) for name in self._sources])
        most = np.array([design.most.get(name, 1.0) for name in self._sources])
        call = partial(self._loss_and_gradient, part)
        if not prior.sum():
            prior = np.ones(len(prior))
        weights, tried = fit_merge(call, self.present, prior, most, design.strength, STEPS)
        self._say(
            f"fit of the {part}: {tried[0].objective:.4f} to "
            f"{min(step.objective for step in tried):.4f} in {len(tried)} passes"
        )
        now, then = (self.score(OTHER[part], w) for w in (self.present, weights))
        return MergeFit(
            part=part,
            weights=self.named(weights),
            gains=_gains(now, then),
            slopes=self._slopes(part),
        )

    def _loss_and_gradient(self, part: Part, weights: Array) -> tuple[float, Array]:
        """The objective in bits per byte, and its gradient [sources]."""
        from mixloop.evals.merging import NoGradientsError

        at = self.coefficients(part, weights)
        try:
            losses, slope = self._merges.losses_and_slope(at, self._objective)
        except NoGradientsError as error:
            self._say(f"by differences: {error}")
            return self._by_differences(part, weights)
        return self._total(losses), self._by_source(part, slope)

    def _by_differences(self, part: Part, weights: Array) -> tuple[float, Array]:
        loss = self._total(self._merges.losses(self.coefficients(part, weights)))
        if not np.isfinite(loss):
            return loss, np.full(len(weights), np.nan)
        steps = weights + DIFFERENCE * np.eye(len(weights))
        there = [self._total(self._merges.losses(self.coefficients(part, w))) for w in steps]
        return loss, (np.array(there) - loss) / DIFFERENCE

    def _slopes(self, part: Part) -> dict[str, dict[str, float]]:
        """By benchmark and source the derivative of the loss at the present mixture."""
        from mixloop.evals.merging import NoGradientsError

        at = self.coefficients(part, self.present)
        try:
            _, slopes = self._merges.losses_and_gradients(at)
        except NoGradientsError:
            return {}
        return {name: self.named(self._by_source(part, slope)) for name, slope in slopes.items()}

    # -- merges ------------------------------------------------------------------------------

    def scored(self, name: str, weights: Mapping[str, float]) -> ScoredBranch:
        """The merge at a mixture of the sources, scored as the branches are."""
        shares = np.array([weights.get(source, 0.0) for source in self._sources])

        def score() -> ScoredBranch:
            return ScoredBranch(weights=self.named(shares), benchmarks=self.score("whole", shares))

        return self._place.made(self._place.folder / f"merge-{name}.json", ScoredBranch, score)

    def foretold(
        self, branches: Sequence[Mapping[str, float]], trained: Mapping[int, TrainedBranch]
    ) -> Iterator[tuple[int, Mapping[str, float]]]:
        """Number and mixture of each branch that was trained on sources that all have experts."""
        for number, weights in enumerate(branches, start=1):
            drawn = {name for name, weight in weights.items() if weight > 0}
            done = trained[number].failed is None and single_source(weights) is None
            if done and drawn <= set(self._sources):
                yield number, weights

    def score(self, part: Part, weights: Array) -> dict[str, BenchmarkScore]:
        """Scores by benchmark of the merge at weights [sources] of a part of the data."""
        found = self._merges.outcomes(self.coefficients(part, weights))
        return {name: merge_score(name, outcomes) for name, outcomes in found.items()}

    def mixmin(self) -> dict[str, float]:
        """MixMin's mixture of the experts' probabilities (2502.10510)."""
        from mixloop.evals.merging import mixmin

        tokens, importance = [], []
        for number, row in enumerate(np.eye(len(self._sources))):
            found = self._merges.token_logprobs(self.coefficients("whole", row))
            tokens.append(
                [p for name in self._objective for item in found[name].values() for p in item]
            )
            if number == 0:
                importance = [
                    factor / self._merges.gold_bytes(name)
                    for name, factor in self._objective.items()
                    for item in found[name].values()
                    for _ in item
                ]
        return self.named(mixmin(np.array(tokens).T, importance))

    # -- shares and coefficients -------------------------------------------------------------

    def coefficients(self, part: Part, weights: Array) -> Coefficients:
        """What the deltas are multiplied with for a mixture [sources] of a part of the data."""
        found: Coefficients = {}
        for expert, weight in zip(self._experts, map(float, weights), strict=True):
            for half, scale in _scales(expert, part).items():
                found[delta_name(expert, half)] = weight * scale
        return found

    def _by_source(self, part: Part, slope: Mapping[str, float]) -> Array:
        """The gradient after shares [sources] of one after the deltas' coefficients."""
        return np.array(
            [
                sum(scale * slope[delta_name(e, half)] for half, scale in _scales(e, part).items())
                for e in self._experts
            ]
        )

    def _total(self, losses: Mapping[str, float]) -> float:
        return sum(factor * losses[name] for name, factor in self._objective.items())

    def named(self, values: Array) -> dict[str, float]:
        """An array [sources] by source."""
        return dict(zip(self._sources, map(float, values), strict=True))


def delta_name(expert: Expert, half: str) -> str:
    """What the merges call a delta."""
    return f"{expert.source}/{half}"


def _scales(expert: Expert, part: Part) -> dict[str, float]:
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


def merge_score(benchmark: str, outcomes: Outcomes) -> BenchmarkScore:
    """A merge's bits per byte on a benchmark, with the error over items of a scorecard."""
    weights = [outcome["bytes"] for outcome in outcomes.values()]
    totals = [outcome[BITS_PER_BYTE] * outcome["bytes"] for outcome in outcomes.values()]
    # items of one MMLU subject were drawn together
    clusters = [i.partition("/")[0] if benchmark == "mmlu" else i for i in outcomes]
    value, stderr = ratio_of_totals(totals, weights, clusters)
    metric = Metric(value=value, stderr=stderr, n=len(outcomes), higher_is_better=False)
    return BenchmarkScore(metrics={BITS_PER_BYTE: metric}, items=dict(outcomes))


def _gains(
    now: Mapping[str, BenchmarkScore], then: Mapping[str, BenchmarkScore]
) -> dict[str, tuple[float, float]]:
    found = {}
    for name, score in then.items():
        difference = score_difference(now[name], score, BITS_PER_BYTE, name)
        found[name] = (difference.gain, difference.stderr)
    return found


def _normalised(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares made to sum to 1; equal ones where all are 0."""
    total = sum(shares.values())
    if total <= 0:
        return dict.fromkeys(shares, 1 / max(1, len(shares)))
    return {name: share / total for name, share in shares.items()}

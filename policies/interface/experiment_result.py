"""What came of an experiment: branches from one checkpoint, and what their merges say.

A branch goes on from a checkpoint of the run, on a mixture of its own, for a few tokens, elsewhere
than on the run's device. All branches of an experiment start from the same checkpoint and are
scored on the same items, so that a difference says what the mixture does; what the run itself
gained meanwhile is on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from mixloop.common.paired import Difference

from .checkpoint_scores import (
    BITS_PER_BYTE,
    FROZEN,
    BenchmarkScore,
    MissingScore,
    Phase,
    score_difference,
)

BranchSchedule = Literal["as the run", "to zero"]
ExperimentState = Literal["planned", "running", "done", "failed", "refused"]


class _Frozen(BaseModel):
    model_config = FROZEN


class MergeDesign(_Frozen):
    """Fit the mixture whose merge of the branches (one expert per source) scores best.

    The merge of a mixture w is ``checkpoint + sum_i w_i (expert_i - checkpoint)``, one expert per
    branch. The fit minimises the objective's bits per byte on the steering items plus ``strength``
    times the KL divergence to ``prior``, inside ``most``.

    Attributes:
        prior: what is believed without evidence, a mixture.
        most: greatest share by source, from the ledger; 1 for a source that isn't named.
        strength: of the pull to the prior, in bits per byte per nat.
    """

    prior: dict[str, float]
    most: dict[str, float] = {}
    strength: float = Field(0.01, ge=0, allow_inf_nan=False)


class ScoredBranch(_Frozen):
    """A branch, or a merged model, and its scores. ``weights`` are the mixture it stands for."""

    weights: dict[str, float]
    benchmarks: dict[str, BenchmarkScore] = {}


class MergeFit(_Frozen):
    """The mixture whose merge scores best, fitted to all of the experts' data or to a half of it.

    ``gains`` are by benchmark (gain, standard error over items) in the steering metric of the
    merge at ``weights`` against the merge at the present mixture: positive is better. Those of a
    fit to a half are measured in merges of the other half's data. ``slopes`` are by benchmark and
    source the derivative of the loss after the source's share, at the merge of the present
    mixture: what a little more of it would do to first order. The halves' are taken at that same
    merge, along what each half taught.
    """

    part: Literal["whole", "first", "second"] = "whole"
    weights: dict[str, float]
    gains: dict[str, tuple[float, float]] = {}
    slopes: dict[str, dict[str, float]] = {}


class ExperimentResult(_Frozen):
    """One experiment of this run, whatever became of it.

    Attributes:
        decision: id of the decision that asked for it.
        step, tokens, phase: of the checkpoint that all branches start from.
        weights: the mixture in force then: the control's.
        branch_tokens: training tokens of each branch.
        control: the branch on the unchanged mixture; None where there is none (or not yet).
        branches: in the order they were asked for; one that failed has no benchmarks.
        merges: merged models that were scored: at the present mixture, at the fitted one, and at
            the mixture of each branch that is no expert and draws from sources with experts only,
            in their order: what merges foretold of what was trained.
        receipt: whether it is a twin of the run that goes on without the decision's change: one
            branch on the mixture from before it, as long as two evaluations, and no control, which
            is the run itself.
        halfway: of a receipt, its branch at half of its tokens.
        mixmin: the best convex mixture of the experts' *probabilities* (MixMin, 2502.10510).
        cost: training tokens that were spent on it, over all branches.
        reason: why it was asked for or, of one that failed or was refused, why that is so.
    """

    id: str
    decision: str = ""
    step: int = 0
    tokens: int = 0
    phase: Phase | None = None
    weights: dict[str, float] = {}
    branch_tokens: int = 0
    schedule: BranchSchedule = "to zero"
    design: MergeDesign | None = None
    state: ExperimentState = "done"
    reason: str = ""
    receipt: bool = False
    control: ScoredBranch | None = None
    halfway: ScoredBranch | None = None
    branches: tuple[ScoredBranch, ...] = ()
    merges: tuple[ScoredBranch, ...] = ()
    fits: tuple[MergeFit, ...] = ()
    mixmin: dict[str, float] | None = None
    cost: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "failed", "refused")

    def fit(self, part: str = "whole") -> MergeFit | None:
        """The fit to this part of the experts' data, if there is one."""
        return next((fit for fit in self.fits if fit.part == part), None)

    def difference(
        self, branch: int | ScoredBranch, benchmark: str, metric: str = BITS_PER_BYTE
    ) -> Difference:
        """How much better a branch is than the control on one benchmark, paired over its items.

        The error is that over items. A branch's own few windows add a noise that no item shows.

        Raises:
            MissingScore: when a side lacks the benchmark or metric.
        """
        one = self.branches[branch] if isinstance(branch, int) else branch
        before = self.control.benchmarks.get(benchmark) if self.control else None
        after = one.benchmarks.get(benchmark)
        if before is None or after is None:
            raise MissingScore(f"experiment {self.id}: {benchmark} has no score on both sides")
        return score_difference(before, after, metric, benchmark)


def moved_by(branch: ScoredBranch, control: Mapping[str, float]) -> dict[str, float]:
    """By how much the branch's mixture differs from the control's, per source of either."""
    names = dict.fromkeys([*control, *branch.weights])
    return {name: branch.weights.get(name, 0.0) - control.get(name, 0.0) for name in names}

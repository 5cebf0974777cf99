"""One branch from nothing to its scores: trained, scored, turned into deltas, and cleared away.

Each step leaves something whole on the disk, or nothing. A branch that fails costs itself.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mixloop.common.errors import one_line
from mixloop.evals import Scorecard
from mixloop.policies.interface import BITS_PER_BYTE, BenchmarkScore, Metric
from mixloop.trainer.config import JobError

from .foreign_branch import BranchError, train_by_command
from .spec import ExperimentSpec
from .workspace import SCRATCH, Workspace

if TYPE_CHECKING:
    from mixloop.evals.scoring import Scorer

DEATHS = 3
"""Processes that may die in a branch before it counts as failed: one that needs more memory than
there is must not cost the experiment, and a daemon that is restarted must not cost the branch."""

Say = Callable[[str], None]


class TrainedBranch(BaseModel):
    """What is kept of a branch once its weights are gone.

    Attributes:
        benchmarks: by name; empty where it failed.
        half: of a receipt, at half of its tokens; empty where its weights then were not kept.
        tokens: trained.
        loss: of its training, at the end; None where its trainer doesn't say.
        seconds: that training took.
        early: part of the learning rates' sum that was spent at half of its tokens; 0 where its
            weights then were not kept.
        failed: why it has no scores.
    """

    benchmarks: dict[str, BenchmarkScore] = {}
    half: dict[str, BenchmarkScore] = {}
    tokens: int = 0
    loss: float | None = None
    seconds: float = 0.0
    early: float = 0.0
    failed: str | None = None


class BranchWork:
    """Trains and scores the branches of an experiment.

    Args:
        spec: the experiment.
        place: its folder.
        scorer: of the run's items.
        say: hears what a person should know.
    """

    def __init__(self, spec: ExperimentSpec, place: Workspace, scorer: Scorer, say: Say) -> None:
        self._spec = spec
        self._place = place
        self._scorer = scorer
        self._say = say

    def done(self, number: int, weights: Mapping[str, float], *, expert: bool) -> TrainedBranch:
        """The branch, done now or earlier.

        Args:
            number: 0 is the control.
            weights: its mixture.
            expert: its deltas are wanted, one for each half of its data.

        Raises:
            OSError: the disk does not take it, which would be so for every branch.
        """
        kept = self._place.kept(self._place.scores(number), TrainedBranch)
        if kept is None:
            kept = self._made(number, weights, expert)
            self._place.keep(self._place.scores(number), kept)
        shutil.rmtree(self._place.branch(number), ignore_errors=True)
        return kept

    def _made(self, number: int, weights: Mapping[str, float], expert: bool) -> TrainedBranch:
        folder = self._place.branch(number)
        deaths = self._place.begun(number)
        if deaths >= DEATHS:
            return TrainedBranch(failed=f"its process died {deaths} times in it")
        try:
            if not folder.is_dir():
                self._train(folder, weights, expert or self._spec.receipt)
            found = self._measured(folder)
            if expert:
                self._subtract(number, folder)
        except (JobError, BranchError) as error:
            return TrainedBranch(failed=str(error))
        except OSError:
            raise
        # torch, transformers and whatever they call fail in their own ways
        except Exception as error:
            return TrainedBranch(failed=one_line(error))
        return found

    def _train(self, folder: Path, weights: Mapping[str, float], halfway: bool) -> None:
        spec = self._spec
        if spec.command is None:
            from mixloop.trainer.branching import Branch, train_branch

            branch = Branch(
                job=spec.job,
                checkpoint=spec.checkpoint,
                weights=weights,
                tokens=spec.tokens,
                schedule=spec.schedule,
                halfway=halfway,
                device=spec.device,
                threads=spec.threads,
            )
            train_branch(branch, folder, self._say)
            return
        work = folder.parent / f"{SCRATCH}{folder.name}-{os.getpid()}"
        work.mkdir()
        began = time.monotonic()
        try:
            train_by_command(spec, weights, work, halfway=halfway)
            self._say(f"{folder.name} took {time.monotonic() - began:.0f} s")
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _measured(self, folder: Path) -> TrainedBranch:
        card = self._scorer.score(folder)
        self._scorer.release()
        scores = scores_of(card)
        if not scores:
            missing = [score.reason or name for name, score in card.benchmarks.items()]
            raise BranchError(f"it was not scored: {'; '.join(dict.fromkeys(missing))}")
        half = self._half_scores(folder) if self._spec.receipt else {}
        return TrainedBranch(benchmarks=scores, half=half, **self._report(folder))

    def _half_scores(self, folder: Path) -> dict[str, BenchmarkScore]:
        """Of the weights at half of its tokens; empty where they were not kept."""
        from mixloop.trainer.branching import HALF
        from mixloop.trainer.sources import copy_tokenizer

        half = folder / HALF
        if not half.is_dir():
            return {}
        copy_tokenizer(folder, half)  # they are one model's: kept beside its end alone
        card = self._scorer.score(half)
        self._scorer.release()
        return scores_of(card)

    def _report(self, folder: Path) -> dict[str, Any]:
        from mixloop.trainer.branching import HALF, read_report

        halves = (folder / HALF).is_dir()
        if self._spec.command is not None:
            # as a trainer that does what it is told spends them
            early = 0.75 if self._spec.schedule == "to zero" else 0.5
            return {"tokens": self._spec.tokens, "early": early if halves else 0.0}
        report = read_report(folder)
        return {
            "tokens": report.tokens,
            "loss": report.loss,
            "seconds": report.seconds,
            "early": report.early if halves else 0.0,
        }

    def _subtract(self, number: int, folder: Path) -> None:
        """The expert's deltas: of its first half and its second, or of all of it at once."""
        from mixloop.evals.checkpoints import CheckpointError, write_delta
        from mixloop.trainer.branching import HALF

        start, half = self._spec.checkpoint, folder / HALF
        first, second = (self._place.delta(number, part) for part in ("first", "second"))
        try:
            if half.is_dir():
                write_delta(start, half, first)
                write_delta(half, folder, second)
            else:
                write_delta(start, folder, first)
        except CheckpointError as error:
            raise BranchError(one_line(error)) from error


def scores_of(card: Scorecard) -> dict[str, BenchmarkScore]:
    """Bits per byte of a scorecard's benchmarks as policies see them; a missing one is absent."""
    found = {}
    for name, score in card.benchmarks.items():
        metric = score.metrics.get(BITS_PER_BYTE)
        if score.status == "ok" and metric is not None:
            kept = metric.model_dump(include={"value", "stderr", "n", "higher_is_better"})
            found[name] = BenchmarkScore(
                metrics={BITS_PER_BYTE: Metric(**kept)}, items=dict(score.items)
            )
    return found

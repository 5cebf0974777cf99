"""One experiment in a process of its own: ``python -m mixloop.controller.experiments.runner SPEC``.

It trains the control and the branches one after the other, scores each on the same items, fits what
is to be fitted on their merges, and writes ``result.json`` as the last thing. How far it is goes to
standard output as JSON lines, what else there is to say to the log. Killed at any moment and
started again, it goes on from what is whole on the disk.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from mixloop.common.errors import one_line
from mixloop.policies.interface import ExperimentResult, ScoredBranch

from .branch_work import BranchWork, TrainedBranch
from .experts import delta_name, experts_of, parts_of, single_source
from .merge_work import MergeWork
from .spec import ExperimentSpec
from .workspace import ExperimentProgress, Workspace

NICENESS = 10  # below whatever else this machine does: the run comes first
_SHOWN = 3  # failed branches that a reason names


class ExperimentError(Exception):
    """The whole experiment came to nothing: one line with the reason."""


class Experimenter:
    """Carries out one experiment in its folder.

    Args:
        spec: what is asked for.
        told: where progress goes, as JSON lines.
    """

    def __init__(self, spec: ExperimentSpec, told: IO[str]) -> None:
        self._spec = spec
        self._place = Workspace(spec.out)
        self._told = told
        self._progress = ExperimentProgress(branches=len(spec.mixtures))

    def run(self) -> ExperimentResult:
        """What comes of it. It is on the disk then, and what takes room there is gone."""
        place = self._place
        ended = place.ended()
        if ended is not None:
            return ended
        place.sweep()
        trained: dict[int, TrainedBranch] = {}
        try:
            self._train(trained)
            result = self._result(trained)
        # whatever fails ends the experiment in a line, never the loop that waits for it
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, ExperimentError) else one_line(error)
            # a branch that failed may have done so at its end
            update = {"state": "failed", "reason": reason, "cost": len(trained) * self._spec.tokens}
            result = self._bare(trained).model_copy(update=update)
        place.clean()  # first: a result needs room too
        place.keep(place.result, result)
        self._tell(done=sum(not b.failed for b in trained.values()), doing=result.state)
        return result

    def _train(self, trained: dict[int, TrainedBranch]) -> None:
        """Every branch, the control first."""
        spec = self._spec
        if not (spec.checkpoint / "config.json").is_file():
            raise ExperimentError(f"{spec.checkpoint}: the checkpoint is gone")
        from mixloop.evals.scoring import Scorer

        scorer = Scorer(spec.evals)
        work = BranchWork(spec, self._place, scorer, self._say)
        try:
            for done, (number, weights) in enumerate(spec.mixtures.items()):
                self._tell(done=done, doing=f"branch {number}" if number else "control")
                expert = bool(number) and spec.merge is not None
                expert = expert and single_source(weights) is not None
                trained[number] = work.done(number, weights, expert=expert)
                if trained[number].failed is not None:
                    self._say(f"branch {number} failed: {trained[number].failed}")
                if not number and trained[0].failed is not None:
                    raise ExperimentError(f"the control failed: {trained[0].failed}")
        finally:
            scorer.close()
        if all(trained[number].failed for number in range(1, len(spec.branches) + 1)):
            raise ExperimentError(f"every branch failed: {trained[1].failed}")

    def _result(self, trained: Mapping[int, TrainedBranch]) -> ExperimentResult:
        result = self._bare(trained)
        if self._spec.merge is None:
            return result
        self._tell(done=len(trained), doing="merges")
        try:
            return result.model_copy(update=self._merged(trained))
        except OSError:
            raise
        # the branches have their scores: what their merges would say is lost alone
        except Exception as error:
            traceback.print_exc()
            note = f"no merges: {one_line(error)}"
            return result.model_copy(update={"reason": _joined(result.reason, note)})

    def _merged(self, trained: Mapping[int, TrainedBranch]) -> dict[str, object]:
        """The fields of the result that merges fill."""
        from mixloop.evals.merging import Merges

        spec = self._spec
        experts = experts_of(spec, trained)
        if len(experts) < 2:
            raise ExperimentError(f"{len(experts)} experts are none too many: a merge needs two")
        deltas = {
            delta_name(expert, part): self._place.delta(expert.number, part)
            for expert in experts
            for part in (("first", "second") if expert.early else ("first",))
        }
        merges = Merges(spec.checkpoint, deltas, spec.evals)
        with contextlib.closing(merges):
            work = MergeWork(spec, self._place, experts, merges, self._say)
            fits = [work.fit(part) for part in parts_of(experts)]
            scored = [
                work.scored("present", work.named(work.present)),
                work.scored("fitted", fits[0].weights),
            ]
            # what merges foretell of mixtures that were trained as well: how far to believe them
            for number, weights in work.foretold(spec.branches, trained):
                scored.append(work.scored(f"branch-{number:02d}", weights))
            return {"fits": tuple(fits), "merges": tuple(scored), "mixmin": work.mixmin()}

    def _bare(self, trained: Mapping[int, TrainedBranch]) -> ExperimentResult:
        """The result without merges."""
        spec = self._spec
        control = trained.get(0)
        branches = tuple(
            ScoredBranch(
                weights=weights,
                benchmarks=trained[number].benchmarks if number in trained else {},
            )
            for number, weights in enumerate(spec.branches, start=1)
        )
        failures = [
            f"branch {number} failed: {branch.failed}"
            for number, branch in trained.items()
            if branch.failed is not None
        ]
        more = f"and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        return ExperimentResult(
            id=spec.id,
            decision=spec.decision,
            step=spec.step,
            tokens=spec.run_tokens,
            phase=spec.phase,
            weights=spec.weights,
            branch_tokens=spec.tokens,
            schedule=spec.schedule,
            design=spec.merge,
            reason=_joined(spec.reason, *failures[:_SHOWN], more),
            receipt=spec.receipt,
            halfway=self._halfway(trained),
            control=None
            if control is None
            else ScoredBranch(weights=spec.weights, benchmarks=control.benchmarks),
            branches=branches,
            cost=sum(branch.tokens for branch in trained.values()),
        )

    def _halfway(self, trained: Mapping[int, TrainedBranch]) -> ScoredBranch | None:
        """A receipt's branch at half of its tokens, where its weights then were kept."""
        half = trained[1].half if self._spec.receipt and 1 in trained else {}
        return ScoredBranch(weights=self._spec.branches[0], benchmarks=half) if half else None

    # -- telling -----------------------------------------------------------------------------

    def _tell(self, **changed: object) -> None:
        self._progress = replace(self._progress, **changed)  # type: ignore[arg-type]
        self._place.say(self._progress)
        with contextlib.suppress(OSError):  # nobody listens: the result is on the disk
            self._told.write(json.dumps(asdict(self._progress)) + "\n")
            self._told.flush()

    def _say(self, text: str) -> None:
        """A line for the log."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        sys.stderr.write(f"{stamp} experiment {self._spec.id}: {text}\n")


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def main() -> None:
    """Entry of ``python -m mixloop.controller.experiments.runner``."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not garble what is told
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    spec = ExperimentSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    from mixloop.evals.workers import set_up_process

    set_up_process(spec.evals, lambda reason: None)
    gc.freeze()  # models are collected between branches, without a look at all that is imported
    with Workspace(spec.out).alone():
        Experimenter(spec, told).run()


if __name__ == "__main__":
    main()

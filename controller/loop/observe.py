"""The run as files and journal show it now: everything that the next action depends on.

Reads only. Every look opens the files afresh; what cannot be read is no news.
"""

from __future__ import annotations

from pathlib import Path

from mixloop.common.json_records import Problem
from mixloop.contract import Status, read_holds
from mixloop.controller.core import ExperimentRow, JobState, OrderRow, RunState, left_by
from mixloop.controller.journal import queries, unreadable_files
from mixloop.policies.mixture import REACHED, total_variation

from .checkpoint_queue import CheckpointQueue
from .mixture_file import MixtureFile
from .operator_inbox import expired_approval, next_request
from .takeover import OwnedRun
from .trainer_news import TrainerNews

COMPARED = 1.1  # of a twin's tokens: no score of the run's beyond is compared with it
CURVE_POINTS = 400  # points of the trainer's curves over a whole run, at most


class RunObserver:
    """What a controller can see of one run, beside its own jobs."""

    def __init__(self, run: OwnedRun, mixture_file: MixtureFile, queue: CheckpointQueue) -> None:
        self._run = run
        self._mixture_file = mixture_file
        self._queue = queue
        self.news = TrainerNews(run)

    def observe(self, jobs: JobState) -> RunState:
        """The run now, with ``jobs`` as they are."""
        run, news, queue = self._run, self.news, self._queue
        news.update()
        status, rewinds, ended = news.status, news.rewinds, news.training_ended
        paused = queries.paused(run.journal)
        decides = status is not None and not paused and not news.unknown_sources
        asked = queries.newest_order(run.journal)
        file, foreign_order = self._mixture_file.look(status, asked)
        waiting = queue.waiting(rewinds, ended)
        experiment, over = self._experiment(status, ended, waiting, jobs.experimenting)
        to_skip = queue.abandoned(rewinds)
        if not (to_skip or jobs.scoring or jobs.piloting or ended):
            to_skip = queue.behind(waiting)
        unrecorded = queue.unrecorded(rewinds)
        unread = {run.paths.status: news.problem} if news.problem is not None else {}
        return RunState(
            status=status,
            training_ended=ended,
            unknown_sources=news.unknown_sources,
            began=news.began(),
            rewinds=rewinds,
            file=file,
            foreign_order=foreign_order,
            asked=asked.generation if asked is not None else None,
            newly_applied=tuple(news.newly_applied()),
            newly_rejected=news.newly_rejected(),
            paused=paused,
            request=next_request(run.paths, status),
            expired=expired_approval(run.journal, run.config, status),
            unrecorded=unrecorded,
            waiting=waiting,
            to_skip=to_skip,
            to_decide=queue.to_decide() if decides else None,
            experiment=experiment,
            experiment_over=over,
            curves_due=self._curves_due(status, jobs.curves_at),
            outbox=queries.waiting_entries(run.journal) if run.config.tracking.enabled else 0,
            closed=self._closed(status),
            problems=unread | queue.problems,
            jobs=jobs,
        )

    def _experiment(
        self, status: Status | None, ended: bool, waiting: tuple[int, ...], under_way: str
    ) -> tuple[str, str]:
        """The experiment to be made now, and why it is to be given up instead, if it is.

        A receipt waits for its order, and begins beside no more than the one evaluation: it would
        make what is behind later still. Elsewhere than here it takes nothing of that.
        """
        behind = len(waiting) > 1 and self._run.config.experiments.launcher == "local"
        for row in queries.open_experiments(self._run.journal):
            over = self._experiment_over(row, ended)
            order = self._order_of(row) if row.receipt else None
            if order is not None:
                over = over or self._receipt_over(row, order, status, waiting)
            waits = order is not None and (order.applied_step is None or behind)
            if over or not waits or row.id == under_way:
                return row.id, over
        return "", ""

    def _experiment_over(self, row: ExperimentRow, training_ended: bool) -> str:
        """Why an experiment is of no use any more; empty while it is."""
        if training_ended:
            return "training has ended"
        if not self._run.config.experiment_tokens:
            return "experiments.budget is 0 now"
        unwanted = row.receipt and not self._run.config.experiments.receipts
        return "experiments.receipts is false now" if unwanted else ""

    def _order_of(self, receipt: ExperimentRow) -> OrderRow | None:
        decision = queries.decision(self._run.journal, receipt.decision)
        assert decision is not None
        assert decision.generation is not None
        return queries.order(self._run.journal, decision.generation)

    def _receipt_over(
        self,
        receipt: ExperimentRow,
        order: OrderRow,
        status: Status | None,
        waiting: tuple[int, ...],
    ) -> str:
        """Why a receipt is of no use; empty while it is."""
        if order.applied_tokens is None:
            passed = status is not None and status.in_force.generation > order.generation
            return f"{order.decision} never came into force" if passed or order.rejected else ""
        begins = queries.checkpoint(self._run.journal, receipt.step)
        late = order.applied_tokens < receipt.tokens  # a resume from an earlier one took it sooner
        if late or begins is None or total_variation(begins.weights, receipt.weights) > REACHED:
            return f"no checkpoint has the mixture that {order.decision} changed"
        if self._unmatched(receipt, waiting):
            return "evaluation passed over the checkpoints that its twin would be compared with"
        return ""

    def _unmatched(self, receipt: ExperimentRow, waiting: tuple[int, ...]) -> bool:
        """Whether the run has gone past a twin's end, and none of its scores until then will be."""
        rows = queries.checkpoint_states(self._run.journal, after=receipt.step)
        rows = [r for r in rows if left_by(self.news.rewinds, r.sample, r.incarnation) is None]
        end = receipt.tokens + COMPARED * receipt.planned
        beside = [row for row in rows if row.tokens <= end]
        told = (row.state in ("scored", "running") or row.step in waiting for row in beside)
        return len(beside) < len(rows) and not any(told)

    def _curves_due(self, status: Status | None, curves_at: int) -> bool:
        if status is None or status.loss is None:
            return False
        gap = 0 if status.finished else self._run.config.budget // CURVE_POINTS
        return status.tokens > curves_at + gap

    def _closed(self, status: Status | None) -> bool:
        """Whether the run's end is told; a run that goes on with a larger budget ends again."""
        key = f"end:{status.tokens if status is not None else 0}"
        return queries.entry(self._run.journal, key) is not None

    def examine(self) -> dict[Path, Problem]:
        """What is wrong with the files that :meth:`observe` need not read."""
        paths, accepted = self._run.paths, self._mixture_file.accepted
        accepted.examine()
        problems: dict[Path, Problem | None] = {
            **unreadable_files.log_problems(paths),
            paths.schedule: accepted.problem,
            paths.holds: read_holds(paths.holds).problem,
        }
        return {path: problem for path, problem in problems.items() if problem is not None}

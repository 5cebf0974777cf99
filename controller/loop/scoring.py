"""Checkpoints into the journal, through pilots and evaluations, to their scores."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mixloop.contract import write_holds
from mixloop.controller import views
from mixloop.controller.core import RunState, headline
from mixloop.controller.decisions import Outcomes, observation_builder
from mixloop.controller.journal import queries, records
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.workers import Evaluator, Failure

from .checkpoint_queue import CheckpointQueue
from .eval_planner import Planner, eval_settings
from .takeover import OwnedRun

SCORING_ATTEMPTS = 2


@dataclass
class Scoring:
    """One evaluation at a time.

    Attributes:
        planner: Finds out, before the first evaluation, on how many items to score.
        step: The checkpoint that is scored, or None.
        result: How that ended, once it has.
    """

    run: OwnedRun
    queue: CheckpointQueue

    def __post_init__(self) -> None:
        # What `data: auto` once found stays: every checkpoint is scored on the same items.
        kinds = observation_builder.data_kinds(self.run.journal)
        pinned = eval_settings(self.run.config).pinned(kinds)
        self.planner = Planner(
            self.run.config, self.run.journal, pinned, self._evaluator, self.run.clock
        )
        self.evaluator = self._evaluator(self.planner.settings)
        self.step: int | None = None
        self.result: Scorecard | Failure | None = None
        self._held: frozenset[int] | None = None  # what holds.json asks for; None: not known

    def _evaluator(self, settings: EvalSettings) -> Evaluator:
        return Evaluator(settings, self.run.paths.dir / "evals.log")

    def poll(self) -> None:
        """Look whether a pilot or an evaluation has ended, without waiting."""
        if self.result is None and (self.step is not None or self.evaluator.writing):
            self.result = self.evaluator.poll()
        self.planner.poll()

    def close(self) -> None:
        """End the children."""
        self.evaluator.stop()
        self.planner.stop()

    # -- the queue ---------------------------------------------------------------------------

    def record(self, state: RunState) -> None:
        """A complete checkpoint was seen."""
        folder, manifest = next(iter(state.unrecorded.items()))
        row = queries.checkpoint(self.run.journal, manifest.step)
        if row is not None:
            self._set_aside(row.step, row.incarnation)
        sources = state.status.sources if state.status is not None else {}
        losses = {name: entry.loss for name, entry in sources.items() if entry.loss is not None}
        records.checkpoint(self.run.journal, manifest, str(folder), losses)
        self.hold(state)
        self.run.say(f"checkpoint at step {manifest.step} ({manifest.tokens:,} tokens)")

    def _set_aside(self, step: int, incarnation: int) -> None:
        """The files of a step that was scored on an abandoned branch: they are not this one's."""
        for path in (self.run.paths.dir / "scorecards").glob(f"step-{step:08d}.*"):
            path.rename(path.with_name(f"abandoned-{incarnation}-{path.name}"))

    def skip(self, state: RunState) -> None:
        """These checkpoints are not scored."""
        records.skipped(self.run.journal, state.to_skip)
        self.hold(state)
        reasons = set(state.to_skip.values())
        steps = ", ".join(map(str, state.to_skip))
        self.run.say(f"not scored: step {steps}: {'; '.join(sorted(reasons))}")

    def abandon(self, steps: Collection[int]) -> None:
        """The trainer has left the branch of these checkpoints."""
        if self.step in steps:
            self.evaluator.stop()
            self.step = self.result = None

    def hold(self, state: RunState) -> None:
        """Ask the trainer's retention to spare what is still scored, averaged or branched from."""
        in_use = self.queue.in_use(state.rewinds, state.training_ended)
        steps = frozenset([*in_use, *self._branched_from(state)])
        if steps != self._held:
            write_holds(self.run.paths.holds, steps)
            self._held = steps

    def _branched_from(self, state: RunState) -> list[int]:
        """Checkpoints that an experiment starts from, or that one may yet be asked for."""
        if state.training_ended or not self.run.config.experiment_tokens:
            return []
        steps = [row.step for row in queries.open_experiments(self.run.journal)]
        newest = queries.newest_scored_step(self.run.journal)
        return steps if newest is None else [*steps, newest]

    def hold_anew(self, state: RunState) -> None:
        """As :meth:`hold`, whatever ``holds.json`` is taken to hold."""
        self._held = None
        self.hold(state)

    # -- pilots and evaluations --------------------------------------------------------------

    def start_pilot(self, state: RunState) -> None:
        """Evaluate the next checkpoint on trial."""
        checkpoint = self._path(state.waiting[0])
        if not checkpoint.is_dir():
            self.start(state)  # which says that it is gone; the next one is tried
            return
        speed = state.status.tokens_per_second if state.status is not None else None
        self.planner.start(checkpoint, speed)

    def take_pilot(self, state: RunState) -> None:
        """The trial's result; after the last, the plan."""
        self.run.say(self.planner.take())
        if not self.planner.needed:
            self.evaluator.stop()
            self.evaluator = self._evaluator(self.planner.settings)

    def start(self, state: RunState) -> None:
        """Score the next checkpoint."""
        step = state.waiting[0]
        earlier = queries.evaluation(self.run.journal, step)
        records.scoring_started(self.run.journal, step)
        checkpoint = self._path(step)
        out = self.run.paths.dir / "scorecards" / f"step-{step:08d}.json"
        out.parent.mkdir(exist_ok=True)
        self.step = step
        if not checkpoint.is_dir():
            self.result = Failure("the checkpoint is gone (removed before it was scored)")
            return
        if earlier is not None and earlier.state == "running":
            self.result = self._scored_before(checkpoint, out)
        if self.result is not None:
            return
        try:
            self.evaluator.start(checkpoint, out, self._averaged_with(step, state))
        except OSError as error:
            self.result = Failure(f"no worker can be started: {error}")

    def _averaged_with(self, step: int, state: RunState) -> list[Path]:
        """Folders of the checkpoints before a step that go into its mean."""
        return [Path(row.path) for row in self.queue.before(step, state.rewinds)]

    def _path(self, step: int) -> Path:
        row = queries.checkpoint(self.run.journal, step)
        assert row is not None
        return Path(row.path)

    def _scored_before(self, checkpoint: Path, out: Path) -> Scorecard | None:
        """A scorecard that was finished when an earlier controller died before recording it.

        Of an evaluation that was begun, that is: what lies there otherwise may be of a checkpoint
        of that name on a branch that the trainer has left.
        """
        try:
            card = Scorecard.read(out)
        except (OSError, ValueError):
            return None
        same = card.checkpoint == str(checkpoint.resolve())
        return card if same and card.settings_digest == self.planner.settings.digest() else None

    def take(self, state: RunState) -> None:
        """The evaluation's scores into the journal, or why there are none."""
        step, result = self.step, self.result
        assert step is not None
        if isinstance(result, Scorecard):
            records.scored(self.run.journal, step, json.loads(result.to_json()))
            self.step = self.result = None
            self.hold(state)
            self._note_outcomes()
            self.note_receipts()
            self.run.say(f"step {step}: {headline(result)}")
            self._note_missing(state)
            return
        assert isinstance(result, Failure)
        begun = queries.evaluation(self.run.journal, step)
        assert begun is not None
        final = not self._path(step).is_dir() or begun.attempts >= SCORING_ATTEMPTS
        records.scoring_failed(self.run.journal, step, result.reason, final=final)
        self.step = self.result = None
        self.hold(state)
        self.run.say(f"step {step} was not scored: {result.reason}{'' if final else '; once more'}")
        if final:
            self._note_missing(state)

    def _note_missing(self, state: RunState) -> None:
        """Say, once, that the policy has seen no score for long, and when it does again."""
        benchmarks = self.run.config.evals.benchmarks
        stretch = views.unscored_stretch(self.run.journal, benchmarks, state.rewinds)
        if (stretch is None) == (queries.unscored(self.run.journal) is None):
            return
        records.unscored(self.run.journal, stretch)
        self.run.say("the policy sees scores again" if stretch is None else stretch.in_words)

    def _note_outcomes(self) -> None:
        """Interventions whose effect this score shows for the first time."""
        untold = queries.untold_interventions(self.run.journal)
        if not untold:
            return
        outcomes = Outcomes(self.run.journal)
        for decision in untold:
            assert decision.generation is not None
            order = queries.order(self.run.journal, decision.generation)
            assert order is not None
            outcome = outcomes.of(order)
            if outcome is not None:
                records.outcome(self.run.journal, decision.id, outcome)

    def note_receipts(self) -> None:
        """Receipts of which a score, or their own end, shows more than was told before."""
        journal, newest = self.run.journal, queries.scored_places(self.run.journal)[-1:]
        for row in queries.untold_receipts(journal):
            decision = queries.decision(journal, row.decision)
            if not newest or newest[0][1] > row.tokens + 2 * row.planned:
                continue  # a point that is missing still will stay so
            assert decision is not None
            assert decision.generation is not None
            order = queries.order(journal, decision.generation)
            told = None if order is None else Outcomes(journal).receipt(order)
            if told is not None:
                records.receipt(journal, row.decision, told)

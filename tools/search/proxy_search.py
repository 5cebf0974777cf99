"""``mixloop search``: proxies side by side, each scored at its rungs, until the study is full.

Everything that must outlast an interruption is in the study and in the proxies' own folders: a
search that is started again goes on with the proxies it left, from their checkpoints.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mixloop.common.text import clean
from mixloop.controller.config import RunConfig, SearchPlan
from mixloop.controller.core import mixture
from mixloop.controller.loop import read_plan
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.workers import Evaluator, Failure
from mixloop.policies.interface import BITS_PER_BYTE
from mixloop.policies.surrogates import Score

from .proxy import Proxy, proxy_job
from .study import Trials, scores_of
from .subsample import subsample

if TYPE_CHECKING:
    import optuna


Say = Callable[[str], None]

MAX_FAILURES = 3  # proxies that may fail one after the other
POLL_SECONDS = 0.2


class SearchFailed(Exception):  # noqa: N818 - says how the search ended
    """Proxies fail one after the other; the message says how the last one did."""


@dataclass
class _RunningProxy:
    """A trial whose proxy trains, the rung that is scored next, and when it began."""

    trial: optuna.Trial
    proxy: Proxy
    rung: int
    begun: float


@dataclass
class Progress:
    """How far the search is, for whoever shows it; ``left`` in seconds, None when unknown."""

    done: int
    trials: int
    shares: list[float] = field(default_factory=list)
    left: float | None = None


def eta(seconds: float | None) -> str:
    """``3 min left``, for a person."""
    if seconds is None:
        return "time unknown until the first is done"
    if seconds < 90:
        return f"{seconds:.0f} s left"
    minutes = seconds / 60
    return f"{minutes:.0f} min left" if minutes < 90 else f"{minutes / 60:.1f} h left"


class Search:
    """A search under way.

    Args:
        config: The run, paths absolute.
        plan: What to do.
        say: Hears a line whenever something has happened.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: SearchPlan,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.plan, self._say, self._clock = config, plan, say, clock
        self.trials = Trials(plan)
        self._evaluator = Evaluator(_settings(config), plan.folder / "evals.log")
        self._running: list[_RunningProxy] = []
        self._scoring: _RunningProxy | None = None
        self._interrupted: deque[optuna.Trial] = deque()
        self._durations: list[float] = []
        self._failures = 0
        self._stopped = False

    def stop(self) -> None:
        """End soon; for signal handlers."""
        self._stopped = True

    def run(self, show: Callable[[Progress], None] = lambda progress: None) -> bool:
        """Carry the search out; False when it was stopped before its end.

        Raises:
            SearchFailed: proxies fail one after the other.
        """
        self._subsample()
        self._resume()
        try:
            while not self._stopped:
                self._start_proxies()
                if not self._running:
                    return True
                self._score()
                self._check_proxies()
                show(self.progress())
                time.sleep(POLL_SECONDS)
            return False
        finally:
            self._end()

    def progress(self) -> Progress:
        """How far it is now."""
        shares = [running.proxy.progress() for running in self._running]
        done = self.trials.finished()
        left = None
        if self._durations:
            mean = sum(self._durations) / len(self._durations)
            ahead = max(0.0, self.plan.trials - done - sum(shares))
            left = mean * ahead / min(self.plan.workers, max(1, self.plan.trials - done))
        return Progress(done, self.plan.trials, shares, left)

    def _subsample(self) -> None:
        plan, window = self.plan, self.config.trainer.sequence_length
        for index, (name, tokens) in enumerate(plan.unique.items()):
            out, source = plan.folder / "stores" / name, self.config.sources[name]
            subsample(source.path, out, tokens, window, plan.seed + index, source.options)

    def _resume(self) -> None:
        for trial in self.trials.unfinished():
            if "weights" in trial.user_attrs:
                self._interrupted.append(trial)
            else:  # stopped between the study's question and its answer
                self.trials.failed(trial, "interrupted before it began")

    def _start_proxies(self) -> None:
        """As many proxies as there are workers, and no more than are still wanted."""
        wanted = self.plan.trials - self.trials.finished()
        while len(self._running) < min(self.plan.workers, wanted):
            interrupted = self._interrupted.popleft() if self._interrupted else None
            trial = interrupted or self.trials.ask()
            weights = dict(trial.user_attrs["weights"])
            proxy = Proxy(proxy_job(self.config, self.plan, trial.number, weights), self.plan.rungs)
            rung = max(scores_of(trial.user_attrs), default=-1) + 1
            proxy.start()
            self._running.append(_RunningProxy(trial, proxy, rung, self._clock()))
            again = " again" if interrupted else ""
            self._say(f"proxy {trial.number} begins{again}: {mixture(weights)}")

    def _score(self) -> None:
        """One checkpoint at a time, the oldest proxy's first."""
        if self._scoring is not None:
            outcome = self._evaluator.poll()
            if outcome is None:
                return
            running, self._scoring = self._scoring, None
            if isinstance(outcome, Failure):
                self._fail(running, f"its checkpoint was not scored: {outcome.reason}")
            else:
                self._take(running, outcome)
            return
        for running in self._running:
            checkpoint = running.proxy.checkpoint(running.rung)
            if checkpoint is not None:
                card = running.proxy.job.dir / "scorecards" / f"rung-{running.rung}.json"
                card.parent.mkdir(exist_ok=True)
                self._evaluator.start(checkpoint, card)
                self._scoring = running
                return

    def _take(self, running: _RunningProxy, card: Scorecard) -> None:
        scores, missing = read_scores(card, self.plan.importance)
        if missing:
            self._fail(running, missing)
            return
        state = self.trials.scored(running.trial, running.rung, scores)
        value = self.trials.value(scores)
        tokens = self.plan.rungs[running.rung]
        words = {"running": "goes on", "pruned": "stopped by halving", "complete": "done"}[state]
        self._say(f"proxy {running.trial.number}: {value:.4f} at {tokens:,} tokens, {words}")
        if state == "running":
            running.rung += 1
            return
        self._failures = 0
        self._durations.append(self._clock() - running.begun)
        self._drop(running)
        now = self.progress()
        self._say(f"{now.done} of {now.trials} proxies, {eta(now.left)}")

    def _check_proxies(self) -> None:
        for running in list(self._running):
            reason = running.proxy.failure()
            if reason is None or running is self._scoring:
                continue
            if running.proxy.checkpoint(running.rung) is None:  # what it reached is scored first
                self._fail(running, reason)

    def _fail(self, running: _RunningProxy, reason: str) -> None:
        self.trials.failed(running.trial, reason)
        self._say(f"proxy {running.trial.number} failed: {clean(reason)}")
        self._drop(running)
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            ended = f"{MAX_FAILURES} proxies failed one after the other"
            raise SearchFailed(f"{ended}; the last: {reason}")

    def _drop(self, running: _RunningProxy) -> None:
        self._running.remove(running)
        running.proxy.stop()
        running.proxy.close()
        running.proxy.tidy()

    def _end(self) -> None:
        """End what runs; the proxies save a checkpoint to go on from."""
        for running in self._running:
            running.proxy.stop()
        self._evaluator.stop()
        for running in self._running:
            running.proxy.close()


def read_scores(
    card: Scorecard, importance: Mapping[str, float]
) -> tuple[dict[str, Score], str | None]:
    """The bits per byte that a search goes by, and what is missing of them."""
    scores = {}
    for name in importance:
        score = card.benchmarks.get(name)
        metric = score.metrics.get(BITS_PER_BYTE) if score is not None else None
        if metric is None:
            reason = (score.reason if score is not None else None) or "it gives none"
            return {}, f"{name} has no {BITS_PER_BYTE}: {reason}"
        scores[name] = Score(metric.value, metric.stderr or 0.0)
    return scores, None


def _settings(config: RunConfig) -> EvalSettings:
    """The run's own way of scoring, with the items of its plan where there is one.

    Nothing is generated: bits per byte of the gold answers are all that a search goes by.
    """
    plan = read_plan(config)
    settings: EvalSettings = plan.pin(config.evals) if plan is not None else config.evals
    benchmarks = {
        name: benchmark.model_copy(update={"generate_items": 0})
        for name, benchmark in settings.benchmarks.items()
    }
    changes = {"benchmarks": benchmarks, "watch": {}, "budget": None, "samples": False}
    changes["average"] = 1  # a proxy has one checkpoint
    return settings.model_copy(update=changes)

"""What ``mixloop status --watch`` shows: facts from files and journal in, a view out. Pure.

Times to come are tokens over the trainer's present tokens per second; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from mixloop.common.text import duration
from mixloop.common.types import Json
from mixloop.contract import Health
from mixloop.controller.core import (
    MIN_STALL_LIMIT,
    changes,
    distinct,
    regression,
    steering,
    verdict,
)
from mixloop.controller.views import (
    CheckpointScores,
    RunSnapshot,
    RunStanding,
    SourceStanding,
    TrackingStanding,
)
from mixloop.policies.interface import BITS_PER_BYTE

from .pending import Pending, pending, seconds


@dataclass(frozen=True)
class SourceRow:
    """One source.

    ``cap_seconds``: until it is at the cap on the mixture applied, None: not within the run;
    ``at_the_end``: its epochs then.
    """

    name: str
    asked: float | None
    applied: float
    tokens: int
    epochs: float
    cap: float | None
    cap_tokens: int | None
    cap_seconds: float | None
    at_the_end: float | None
    loss: float | None


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark: its newest value, and how it came to it.

    The paired change since the evaluation before (positive is better), and its past values in the
    same metric, oldest first, None where it was missing. ``distinct``: the change is no noise.
    """

    name: str
    metric: str
    value: float | None = None
    stderr: float | None = None
    n: int | None = None
    step: int = 0
    better: str = "lower"
    change: float | None = None
    change_stderr: float | None = None
    past: tuple[float | None, ...] = ()
    missing: str | None = None
    distinct: bool = False

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``same`` beyond the noise of the pair; empty without one."""
        if self.change is None or self.change_stderr is None:
            return ""
        if not self.distinct:
            return "same"
        return "better" if self.change > 0 else "worse"


@dataclass(frozen=True)
class DecisionRow:
    """One decision, or the newest of several alike that follow one another (``times``)."""

    id: str
    step: int
    verdict: str
    moved: str
    reason: str
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class View:
    """One screen.

    Attributes:
        word: what to call the trainer; ``state`` says more.
        seconds_left: until the budget is spent at the present speed.
    """

    run: str
    state: str
    word: str
    origin: str
    step: int | None = None
    tokens: int | None = None
    budget: int | None = None
    seconds_left: float | None = None
    tokens_per_second: float | None = None
    phase: str | None = None
    loss: float | None = None
    health: str = ""
    generation_asked: int | None
    generation_applied: int | None = None
    controller: str
    controller_well: bool
    sources: tuple[SourceRow, ...]
    benchmarks: tuple[BenchmarkRow, ...]
    steered: str
    pending: tuple[Pending, ...]
    decisions: tuple[DecisionRow, ...]
    tracker: str
    tracker_well: bool
    warnings: tuple[str, ...]

    def to_json(self) -> Json:
        """Plain JSON values."""
        return asdict(self)

    def key(self) -> Json:
        """What is news when it differs: everything but the numbers that always move."""
        key = self.to_json()
        moving = ("step", "tokens", "seconds_left", "tokens_per_second", "loss", "phase")
        for name in (*moving, "sources", "tracker"):
            key.pop(name)
        key["state"] = self.word
        key["mixture"] = [(row.name, row.asked, round(row.applied, 6)) for row in self.sources]
        key["pending"] = [row.what for row in self.pending if row.seconds is None or row.person]
        return key


def build(look: RunSnapshot) -> View:
    """The view of a run from one look at it."""
    run, trainer, status = look.standing, look.standing.trainer, look.standing.status
    speed = status.tokens_per_second if status is not None and trainer.state == "alive" else None
    controller, controller_well = _controller(look)
    headlines = {name: chosen for name, chosen in run.steering.items() if chosen.since is not None}
    view = View(
        run=run.run or "run",
        state=trainer.in_words,
        word=trainer.state,
        origin=trainer.origin_in_words,
        generation_asked=run.asked.generation if run.asked is not None else None,
        controller=controller,
        controller_well=controller_well,
        sources=tuple(_source(row, run, speed) for row in run.sources),
        benchmarks=tuple(_benchmark(name, look) for name in _scored(run)),
        steered=steering(headlines),
        pending=tuple(pending(look, speed)),
        decisions=_decisions(run),
        tracker=_tracker(run.tracking),
        tracker_well=run.tracking.last_error is None,
        warnings=tuple(_warnings(look)),
    )
    if status is None:
        return view
    return replace(
        view,
        step=status.step,
        tokens=status.tokens,
        budget=status.budget,
        seconds_left=seconds(status.budget - status.tokens, speed),
        tokens_per_second=speed,
        phase=status.phase,
        loss=status.loss,
        health=_health(status.health),
        generation_applied=status.in_force.generation,
    )


def _health(health: Health | None) -> str:
    if health is None or not (health.nan_steps or health.spikes):
        return ""
    return f"{health.nan_steps} steps not finite, {health.spikes} loss spikes"


def _controller(look: RunSnapshot) -> tuple[str, bool]:
    """How the controller is, and whether that is as it should be."""
    holder, silent = look.standing.controller, look.controller_silent
    if holder is None:
        return "never started", False
    if holder.alive is False:
        return "not running", look.standing.trainer.state == "finished"
    if silent is not None and silent > MIN_STALL_LIMIT:
        return f"no sign of it for {duration(silent)}", False
    return f"fence {holder.fence}", True


def _tracker(tracking: TrackingStanding) -> str:
    counts = f"{tracking.sent} sent, {tracking.waiting} waiting"
    if tracking.refused:
        counts += f", {tracking.refused} refused"
    last = tracking.last_error
    if last is None:
        return counts
    error = last.get("error") or last.get("reason") or "refused"
    return f"{counts}; failing since {tracking.failing_since or last['at']}: {error}"


def _source(source: SourceStanding, run: RunStanding, speed: float | None) -> SourceRow:
    cap_tokens = None
    if source.cap_at is not None and run.status is not None:
        cap_tokens = source.cap_at - run.status.tokens
    return SourceRow(
        name=source.name,
        asked=source.asked,
        applied=source.applied,
        tokens=source.tokens,
        epochs=source.epochs,
        cap=run.max_epochs,
        cap_tokens=cap_tokens,
        cap_seconds=seconds(cap_tokens, speed),
        at_the_end=source.at_the_end,
        loss=source.loss,
    )


def _scored(run: RunStanding) -> list[str]:
    """Benchmarks that any of the evaluations has, in the order in which they came."""
    return list(dict.fromkeys(name for card in run.scores for name in card.benchmarks))


def _benchmark(name: str, look: RunSnapshot) -> BenchmarkRow:
    run, newest = look.standing, look.standing.scores[-1]
    score, chosen = newest.benchmarks.get(name), run.steering.get(name)
    metrics = score.metrics if score is not None else {}
    metric = chosen.metric if chosen is not None else BITS_PER_BYTE
    if metrics and metric not in metrics:
        metric = next(iter(metrics))
    row = BenchmarkRow(
        name, metric, step=newest.step, past=tuple(_past(card, name, metric) for card in run.scores)
    )
    value, trend = metrics.get(metric), look.trends.get(name)
    if value is None:
        why = score.reason if score is not None else None
        return replace(row, missing=why or "not in the newest scorecard")
    if trend is not None and trend["metric"] == metric:
        change = {"change": trend["gain"], "change_stderr": trend["stderr"]}
        row = replace(row, **change, distinct=distinct(trend))
    better = "higher" if value.higher_is_better else "lower"
    return replace(row, value=value.value, stderr=value.stderr, n=value.n, better=better)


def _past(card: CheckpointScores, name: str, metric: str) -> float | None:
    score = card.benchmarks.get(name)
    value = score.metrics.get(metric) if score is not None else None
    return None if value is None else value.value


def _decisions(run: RunStanding) -> tuple[DecisionRow, ...]:
    """Newest first; those that changed nothing for the same reason are told once."""
    rows: list[DecisionRow] = []
    for decision, approval in run.decisions:
        entry = decision.to_json()
        moved = changes(entry)
        state = None if approval is None else approval.to_json()
        row = DecisionRow(
            id=decision.id,
            step=decision.step,
            verdict=verdict(entry | {"approval": state}),
            moved="" if moved == "-" else moved,
            reason=decision.reason,
        )
        last = rows[-1] if rows else None
        alike = last is not None and (last.verdict, last.reason) == (row.verdict, row.reason)
        if last is not None and alike and not row.moved and not last.moved:
            rows[-1] = replace(last, times=last.times + 1)
        else:
            rows.append(row)
    return tuple(rows)


def _warnings(look: RunSnapshot) -> Iterator[str]:
    run, people = look.standing, look.standing.operators
    if look.trouble:
        yield look.trouble
    if run.status is not None and run.status.failed_checkpoint is not None:
        yield run.status.failed_checkpoint.in_words
    if run.unscored is not None:
        yield run.unscored.in_words
    for file in run.unreadable:
        yield f"{file.file} can't be read: {file.problem}"
    if run.decisions and (standing := regression(run.decisions[0][0].guards)):
        yield f"the policy: {standing}"
    if people.paused:
        yield "paused: nothing is decided until `mixloop resume`"
    if people.pins:
        pinned = (f"{name} {share:.3g}" for name, share in people.pins.items())
        yield f"pinned: {', '.join(pinned)}"
    if people.requests:
        yield f"{people.requests} requests not taken by a controller yet"
    if run.status is not None and run.status.rejected:
        yield f"order refused: {run.status.rejected[-1].reason}"
    if run.skipped:
        count, last = len(run.skipped), run.skipped[-1]
        yield f"{count} checkpoints not scored; the last, step {last.step}: {last.reason}"

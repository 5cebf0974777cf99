"""What ``mixloop status --watch`` shows: facts from files and journal in, a view out. Pure.

Times to come are tokens over the trainer's present tokens per second; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from mixloop.common.types import Json
from mixloop.controller.core import moves, origin, steering, trainer_in_words
from mixloop.controller.views import RunSnapshot

from .pending import Pending, pending, seconds

CLEAR = 2.0  # standard errors from which on a difference is more than noise


@dataclass(frozen=True)
class SourceRow:
    """One source. ``cap_seconds``: until it is at the cap on the mixture applied, None: not within
    the run; ``at_the_end``: its epochs then."""

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
    """One benchmark: its newest value, the paired change since the evaluation before (positive is
    better), and its past values in the same metric, oldest first, None where it was missing."""

    name: str
    metric: str
    value: float | None
    stderr: float | None
    n: int | None
    step: int
    better: str
    change: float | None
    change_stderr: float | None
    past: tuple[float | None, ...]
    missing: str | None

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``same`` beyond the noise of the pair; empty without one."""
        if self.change is None or self.change_stderr is None:
            return ""
        if abs(self.change) < CLEAR * self.change_stderr:
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


@dataclass(frozen=True)
class View:
    """One screen. ``seconds_left``: until the budget is spent at the present speed."""

    run: str
    state: str
    word: str
    origin: str
    step: int | None
    tokens: int | None
    budget: int | None
    seconds_left: float | None
    tokens_per_second: float | None
    phase: str | None
    loss: float | None
    health: str
    generation_asked: int | None
    generation_applied: int | None
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
        found = self.to_json()
        moving = ("step", "tokens", "seconds_left", "tokens_per_second", "loss", "phase")
        for name in (*moving, "sources", "tracker"):
            found.pop(name)
        found["state"] = self.word
        found["mixture"] = [(one.name, one.asked, round(one.applied, 6)) for one in self.sources]
        found["pending"] = [one.what for one in self.pending if one.seconds is None or one.person]
        return found


def build(look: RunSnapshot) -> View:
    """The view of a run from one look at it."""
    found = look.overview
    trainer, mix = found["trainer"], found["mixture"]
    runs = trainer["state"] == "alive"
    speed = trainer.get("tokens_per_second") if runs else None
    tokens, budget = trainer.get("tokens"), trainer.get("budget")
    left = budget - tokens if tokens is not None and budget is not None else None
    controller, well = _controller(found["controller"], look.controller_silent, trainer["state"])
    tracker, tracker_well = _tracker(found["tracking"], look.failing_since)
    return View(
        run=str(found["run"] or "run"),
        state=trainer_in_words(trainer),
        word=trainer["state"],
        origin=origin(trainer),
        step=trainer["step"],
        tokens=tokens,
        budget=budget,
        seconds_left=seconds(left, speed),
        tokens_per_second=speed,
        phase=trainer.get("phase"),
        loss=trainer.get("loss"),
        health=_health(trainer.get("health")),
        generation_asked=mix["asked"]["generation"] if mix["asked"] else None,
        generation_applied=mix["applied"]["generation"] if mix["applied"] else None,
        controller=controller,
        controller_well=well,
        sources=_sources(found, look.params.get("max_epochs"), left, speed),
        benchmarks=_benchmarks(look, found["steering"]),
        steered=steering({n: o for n, o in found["steering"].items() if o["since"] is not None}),
        pending=pending(look, speed),
        decisions=_decisions(look.decisions),
        tracker=tracker,
        tracker_well=tracker_well,
        warnings=_warnings(look),
    )


def _health(health: Json | None) -> str:
    if not health or not (health["nan_steps"] or health["spikes"]):
        return ""
    return f"{health['nan_steps']} steps not finite, {health['spikes']} loss spikes"


def _controller(found: Json | None, silent: float | None, trainer: str) -> tuple[str, bool]:
    from mixloop.common.text import duration
    from mixloop.controller.core import MIN_STALL_LIMIT

    if found is None:
        return "never started", False
    if found["alive"] is False:
        return "not running", trainer == "finished"
    if silent is not None and silent > MIN_STALL_LIMIT:
        return f"no sign of it for {duration(silent)}", False
    return f"fence {found['fence']}", True


def _tracker(found: Json, since: str | None) -> tuple[str, bool]:
    counts = f"{found['sent']} sent, {found['waiting']} waiting"
    if not found["last_error"]:
        return counts, True
    error = found["last_error"].get("error") or found["last_error"].get("reason") or "refused"
    return f"{counts}; failing since {since or found['last_error']['at']}: {error}", False


def _sources(
    found: Json, cap: float | None, left: int | None, speed: float | None
) -> tuple[SourceRow, ...]:
    asked, applied = found["mixture"]["asked"], found["mixture"]["applied"]
    rows = []
    for name, ledger in found["ledger"].items():
        share = float(applied["weights"].get(name, 0.0)) if applied else 0.0
        unique = ledger["unique_tokens"]
        end = ledger["epochs"] + share * left / unique if left is not None and unique else None
        reach: int | None = None
        if cap is not None and share > 0:
            to_go = int(max(0.0, cap - ledger["epochs"]) * unique / share)
            reach = to_go if left is not None and to_go <= left else None
        rows.append(
            SourceRow(
                name=name,
                asked=asked["weights"].get(name) if asked else None,
                applied=share,
                tokens=ledger["tokens"],
                epochs=ledger["epochs"],
                cap=cap,
                cap_tokens=reach,
                cap_seconds=seconds(reach, speed),
                at_the_end=end,
                loss=ledger.get("loss"),
            )
        )
    return tuple(rows)


def _benchmarks(look: RunSnapshot, steered: Json) -> tuple[BenchmarkRow, ...]:
    if not look.scores:
        return ()
    newest = look.scores[-1]
    names = list(dict.fromkeys(n for one in look.scores for n in one["benchmarks"]))
    return tuple(_benchmark(name, newest["step"], look, steered.get(name)) for name in names)


def _benchmark(name: str, step: int, look: RunSnapshot, chosen: Json | None) -> BenchmarkRow:
    score = look.scores[-1]["benchmarks"].get(name) or {}
    metrics = score.get("metrics") or {}
    wanted = chosen["metric"] if chosen else "bits_per_byte"
    metric = wanted if wanted in metrics or not metrics else next(iter(metrics))
    one = metrics.get(metric)
    trend = dict(look.trends).get(name)
    same = trend is not None and trend["metric"] == metric
    past = (_value(other, name, metric) for other in look.scores)
    return BenchmarkRow(
        name=name,
        metric=metric,
        value=one["value"] if one else None,
        stderr=one["stderr"] if one else None,
        n=one["n"] if one else None,
        step=step,
        better="higher" if one and one["higher_is_better"] else "lower",
        change=trend["gain"] if trend is not None and same else None,
        change_stderr=trend["stderr"] if trend is not None and same else None,
        past=tuple(past),
        missing=None if one else str(score.get("reason") or "not in the newest scorecard"),
    )


def _value(score: Json, name: str, metric: str) -> float | None:
    found = (score["benchmarks"].get(name) or {}).get("metrics") or {}
    return found[metric]["value"] if metric in found else None


def _decisions(found: Sequence[Json]) -> tuple[DecisionRow, ...]:
    """Newest first; those that changed nothing for the same reason are told once."""
    rows: list[DecisionRow] = []
    for one in map(_decision, found):
        last = rows[-1] if rows else None
        alike = last is not None and (last.verdict, last.reason) == (one.verdict, one.reason)
        if last is not None and alike and not one.moved and not last.moved:
            rows[-1] = replace(last, times=last.times + 1)
        else:
            rows.append(one)
    return tuple(rows)


def _decision(one: Json) -> DecisionRow:
    from mixloop.controller.core import verdict

    moved = moves(one["weights_before"], one["weights_after"])
    return DecisionRow(
        id=one["id"],
        step=one["step"],
        verdict=verdict(one),
        moved="" if moved == "-" else moved,
        reason=one["reason"],
    )


def _warnings(look: RunSnapshot) -> tuple[str, ...]:
    found = look.overview
    lines = [look.trouble] if look.trouble else []
    lines += [f"{one['file']} can't be read: {one['problem']}" for one in found["unreadable"]]
    operators = found["operators"]
    if operators["paused"]:
        lines.append("paused: nothing is decided until `mixloop resume`")
    if operators["pins"]:
        shares = ", ".join(f"{name} {share:.3g}" for name, share in operators["pins"].items())
        lines.append(f"pinned: {shares}")
    if operators["requests"]:
        lines.append(f"{operators['requests']} requests not taken by a controller yet")
    lines += [
        f"order refused: {one['reason']}" for one in found["trainer"].get("rejected", ())[-1:]
    ]
    if found["skipped"]:
        last = found["skipped"][-1]
        lines.append(
            f"{len(found['skipped'])} checkpoints not scored; the last, step {last['step']}: "
            f"{last['reason']}"
        )
    return tuple(lines)

"""The file contracts between trainer and controller: formats, and the rule for accepting an order.

Light: standard library only, no torch. Everything here may be imported by a foreign training loop.
``mixture.json`` is written by the controller alone, ``schedule.jsonl`` and ``status.json`` by the
trainer alone; see :mod:`mixloop.trainer.schedule` and :mod:`mixloop.trainer.reports`, whose names
are re-exported here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mixloop.trainer.files import (
    NotAFile,
    canonical,
    decode,
    fsync_folder,
    read_small,
    write_atomic,
)
from mixloop.trainer.reports import (
    FileEntry,
    InForceReport,
    Manifest,
    OrderRef,
    PendingReport,
    RejectedReport,
    SourceReport,
    Status,
    read_holds,
    read_manifest,
    read_status,
    write_holds,
    write_manifest,
    write_status,
)
from mixloop.trainer.schedule import (
    OpenLine,
    Schedule,
    ScheduleTaken,
    ScheduleWriter,
    SegmentLine,
    SourceEntry,
    VoidLine,
    read_schedule,
)

__all__ = [
    "ORDER_SCHEMA",
    "FileEntry",
    "InForceReport",
    "Limits",
    "Manifest",
    "OpenLine",
    "Order",
    "OrderRef",
    "PendingReport",
    "RejectedReport",
    "Rejection",
    "RunPaths",
    "Schedule",
    "ScheduleTaken",
    "ScheduleWriter",
    "SegmentLine",
    "SourceEntry",
    "SourceReport",
    "Stage",
    "Status",
    "VoidLine",
    "fsync_folder",
    "read_holds",
    "read_manifest",
    "read_order",
    "read_schedule",
    "read_status",
    "write_atomic",
    "write_holds",
    "write_manifest",
    "write_order",
    "write_status",
]

ORDER_SCHEMA: Final = "mixloop/order/1"
SUM_TOLERANCE = 1e-6
SAME_WEIGHT = 1e-6  # weights this close are one weight (both ends round to 2^-24 steps)
_COUNTER_LIMIT = 2**53  # every JSON reader agrees on integers below this
_TEXT_LIMIT = 20_000


@dataclass(frozen=True)
class RunPaths:
    """Where the files of a run folder lie."""

    dir: Path

    @property
    def mixture(self) -> Path:
        """The shared state file: the order in force."""
        return self.dir / "mixture.json"

    @property
    def status(self) -> Path:
        """The trainer's heartbeat."""
        return self.dir / "status.json"

    @property
    def schedule(self) -> Path:
        """Every order as applied, at its exact sample."""
        return self.dir / "schedule.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.dir / "checkpoints"

    @property
    def holds(self) -> Path:
        """Checkpoints the controller still needs."""
        return self.dir / "holds.json"

    @property
    def requests(self) -> Path:
        """Folder of an operator's commands."""
        return self.dir / "requests"

    @property
    def journal(self) -> Path:
        """The controller's SQLite file."""
        return self.dir / "journal.db"

    @property
    def job(self) -> Path:
        """The reference trainer's job."""
        return self.dir / "job.json"


@dataclass(frozen=True)
class Stage:
    """What an order plans for later: ``weights`` from ``from_tokens`` training tokens on."""

    from_tokens: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Order:
    """One published mixture. ``weights``: share of training tokens per source, summing to 1.

    A source that is not named gets none.
    """

    run: str
    fence: int
    generation: int
    weights: Mapping[str, float]
    then: Sequence[Stage] = ()
    decision: str = ""
    policy: str = ""
    reason: str = ""
    issued_at: str = ""


@dataclass(frozen=True)
class Limits:
    """The trainer's own bounds on any order, whoever wrote it.

    ``floor`` and ``cap`` bound each weight (a zero weight needs no floor); ``max_change`` bounds
    the total variation (half the sum of absolute differences) against the mixture in force.
    """

    floor: float = 0.0
    cap: float = 1.0
    max_change: float = 1.0


@dataclass(frozen=True)
class Rejection:
    """An order that is not followed, why, and which bytes it was (``sha256:…``)."""

    reason: str
    digest: str
    fence: int | None = None
    generation: int | None = None


class _Bad(Exception):  # noqa: N818 (a control signal inside this module, not an error)
    """The order can't be accepted; the message is the reason."""


@dataclass(frozen=True)
class _Rule:
    """What an order is judged by; the arguments of :func:`read_order`."""

    run: str
    sources: frozenset[str]
    after: tuple[int, int]
    limits: Limits = field(default_factory=Limits)
    in_force: Mapping[str, float] | None = None


def write_order(path: Path, order: Order) -> None:
    """Publish an order at ``path``, as one durable step.

    Raises:
        ValueError: weights that are not finite.
        OSError: the disk did not take it.
    """
    body = _to_json(order)
    body["checksum"] = _checksum(body)
    write_atomic(path, canonical_text(body))


def canonical_text(body: Mapping[str, Any]) -> bytes:
    """The file's bytes: readable, ``schema`` first."""
    return (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _to_json(order: Order) -> dict[str, Any]:
    body: dict[str, Any] = {
        "schema": ORDER_SCHEMA,
        "run": order.run,
        "fence": order.fence,
        "generation": order.generation,
        "weights": dict(order.weights),
    }
    if order.then:
        body["then"] = [
            {"from_tokens": stage.from_tokens, "weights": dict(stage.weights)}
            for stage in order.then
        ]
    for name in ("decision", "policy", "reason", "issued_at"):
        body[name] = getattr(order, name)
    return body


def _checksum(body: Mapping[str, Any]) -> str:
    """``sha256:…`` over the canonical JSON without the checksum itself."""
    rest = {key: value for key, value in body.items() if key != "checksum"}
    return "sha256:" + hashlib.sha256(canonical(rest)).hexdigest()


def read_order(
    path: Path,
    *,
    run: str,
    sources: Iterable[str],
    after: tuple[int, int],
    limits: Limits | None = None,
    in_force: Mapping[str, float] | None = None,
    accept_uid: int | None = None,
) -> Order | Rejection | None:
    """Look at the shared state file. Never raises, whatever lies there.

    Args:
        path: ``mixture.json``.
        run: This run's id.
        sources: Names of the known sources.
        after: The highest accepted (fence, generation).
        limits: The trainer's own bounds.
        in_force: The mixture in force, for ``limits.max_change`` and to tell a take-over (the same
            generation under a higher fence) from a change in disguise.
        accept_uid: Besides the owner of the folder, who may have written the file.

    Returns:
        An :class:`Order` to follow (one of the same generation raises the fence and starts no
        segment), a :class:`Rejection`, or None for no news: nothing there, not readable now, torn,
        or what was accepted already.
    """
    try:
        found = read_small(path)
    except NotAFile as problem:
        return Rejection(str(problem), _digest(str(problem).encode()))
    except Exception as error:
        return Rejection(f"can't be read: {error}", _digest(b""))
    if found is None or not found[0].strip():
        return None
    data, status = found
    rule = _Rule(run, frozenset(sources), after, limits or Limits(), in_force)
    try:
        _owner(path, status, accept_uid)
        return _judge(data, rule)
    except _Bad as problem:
        fence, generation = _numbers(data)
        return Rejection(str(problem), _digest(data), fence, generation)
    except Exception as error:
        # a shape nobody thought of is no reason to stop training
        return Rejection(f"unreadable: {type(error).__name__}", _digest(data))


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _owner(path: Path, status: os.stat_result, accept_uid: int | None) -> None:
    """The checksum is no authentication; the file's owner is what we have."""
    owner = path.parent.stat().st_uid
    if status.st_uid not in (owner, accept_uid):
        raise _Bad(
            f"written by user {status.st_uid}, but the run folder belongs to {owner}; "
            "trainer.accept_uid names another user to accept"
        )


def _judge(data: bytes, rule: _Rule) -> Order | None:
    try:
        body = decode(data)
    except UnicodeDecodeError:
        raise _Bad("not UTF-8") from None
    except ValueError as problem:
        if _torn(data, problem):
            return None
        raise _Bad(f"not JSON: {problem}") from None
    if not isinstance(body, dict):
        raise _Bad(f"a JSON {type(body).__name__}, not an object")
    if body.get("schema") != ORDER_SCHEMA:
        raise _Bad(f"schema {_short(body.get('schema'))} is not {ORDER_SCHEMA!r}")
    if body.get("checksum") != _checksum(body):
        raise _Bad("the checksum does not match the content")
    order = _parse(body)
    return _accept(order, rule)


def _torn(data: bytes, problem: ValueError) -> bool:
    """Whether the text merely ends too early, as a file does that is still being written."""
    position = getattr(problem, "pos", None)
    if position is None:
        return False
    text = data.decode("utf-8", errors="replace").rstrip()
    return position >= len(text) or str(problem).startswith("Unterminated string")


def _parse(body: Mapping[str, Any]) -> Order:
    known = {"schema", "run", "fence", "generation", "weights", "then", "decision", "policy"}
    known |= {"reason", "issued_at", "checksum"}
    if strange := sorted(set(body) - known):
        raise _Bad(f"unknown key {_short(strange[0])}")
    texts = {name: _text(body, name) for name in ("decision", "policy", "reason", "issued_at")}
    return Order(
        run=_text(body, "run"),
        fence=_counter(body, "fence", least=0),
        generation=_counter(body, "generation"),
        weights=_weights(body.get("weights"), "weights"),
        then=_stages(body.get("then", [])),
        **texts,
    )


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        raise _Bad(f"{name} {_short(value)} is no text")
    return value


def _counter(body: Mapping[str, Any], name: str, least: int = 1) -> int:
    value = body.get(name)
    if type(value) is not int or not least <= value < _COUNTER_LIMIT:
        raise _Bad(f"{name} {_short(value)} is no whole number from {least} on")
    return value


def _stages(value: Any) -> tuple[Stage, ...]:
    if not isinstance(value, list) or len(value) > 1000:
        raise _Bad("then is no list of stages")
    stages: list[Stage] = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"from_tokens", "weights"}:
            raise _Bad("a stage of then has other keys than from_tokens and weights")
        start = _counter(entry, "from_tokens")
        if stages and start <= stages[-1].from_tokens:
            raise _Bad(f"then: from_tokens {start} does not come after the stage before it")
        stages.append(Stage(start, _weights(entry["weights"], f"then from {start}: weights")))
    return tuple(stages)


def _weights(value: Any, label: str) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise _Bad(f"{label} {_short(value)} is no mapping of sources to shares")
    made = {}
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise _Bad(f"{label}: {name} has {_short(weight)}, which is no number")
        if not math.isfinite(weight) or not 0.0 <= weight <= 1.0:
            raise _Bad(f"{label}: {name} has {_short(weight)}, which is no share from 0 to 1")
        made[name] = float(weight)
    total = math.fsum(made.values())
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise _Bad(f"{label} sum to {total:.9g}, not 1")
    return made


def _accept(order: Order, rule: _Rule) -> Order | None:
    if order.run != rule.run:
        raise _Bad(f"for run {_short(order.run)}, this one is {rule.run!r}")
    fence, generation = rule.after
    if (order.fence, order.generation) == rule.after:
        return None
    if order.fence < fence:
        raise _Bad(f"fence {order.fence} is below {fence}: from a controller that was replaced")
    if order.generation < generation:
        raise _Bad(f"generation {order.generation} is below {generation}, accepted before")
    for label, weights in [("", order.weights), *((_when(s), s.weights) for s in order.then)]:
        _known(weights, rule.sources, label)
    if order.generation == generation:
        _takeover(order, rule.in_force)
        return order
    _within(order, rule)
    return order


def _when(stage: Stage) -> str:
    return f"then from {stage.from_tokens}: "


def _known(weights: Mapping[str, float], sources: Collection[str], label: str) -> None:
    for name in weights:
        if name not in sources:
            raise _Bad(f"{label}no source is called {_short(name)}")


def _takeover(order: Order, in_force: Mapping[str, float] | None) -> None:
    if in_force is None:
        return
    names = {*order.weights, *in_force}
    if any(abs(order.weights.get(n, 0.0) - in_force.get(n, 0.0)) > SAME_WEIGHT for n in names):
        raise _Bad(
            f"generation {order.generation} was accepted before with other weights; "
            "a change needs a new generation"
        )


def _within(order: Order, rule: _Rule) -> None:
    before: Mapping[str, float] | None = rule.in_force
    for label, weights in [("", order.weights), *((_when(s), s.weights) for s in order.then)]:
        for name, weight in weights.items():
            if 0 < weight < rule.limits.floor - SAME_WEIGHT:
                floor = rule.limits.floor
                raise _Bad(f"{label}{name} {weight:g} is below trainer.limits.floor {floor:g}")
            if weight > rule.limits.cap + SAME_WEIGHT:
                raise _Bad(
                    f"{label}{name} {weight:g} is above trainer.limits.cap {rule.limits.cap:g}"
                )
        if before is not None:
            change = sum(abs(w - before.get(name, 0.0)) for name, w in weights.items()) / 2
            if change > rule.limits.max_change + SAME_WEIGHT:
                raise _Bad(
                    f"{label}a change of {change:.4g} is above trainer.limits.max_change "
                    f"{rule.limits.max_change:g}"
                )
        before = weights


def _numbers(data: bytes) -> tuple[int | None, int | None]:
    """Fence and generation of a rejected file, where it names them, for the report."""
    try:
        body = decode(data)
        found = [body.get(name) for name in ("fence", "generation")]
    except Exception:
        return None, None
    fence, generation = (v if type(v) is int and abs(v) < _COUNTER_LIMIT else None for v in found)
    return fence, generation


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

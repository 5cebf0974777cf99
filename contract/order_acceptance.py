"""Whether an order in ``mixture.json`` may come into force: the trainer's rule of acceptance.

Whoever wrote the file, the trainer keeps its mixture unless every check here passes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.errors import shown
from mixloop.common.files import (
    NotRegularError,
    canonical,
    digest,
    json_bytes,
    read_regular,
)
from mixloop.common.json_records import LARGEST_NUMBER
from mixloop.common.types import parse_json

from .integer_weights import SCALE
from .orders import (
    LARGEST_JUMP,
    LARGEST_ORDER,
    LARGEST_TURN,
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_STAGES,
    ORDER_SCHEMA,
    SUM_TOLERANCE,
    Order,
    Stage,
    order_json,
)
from .signing import unsigned_reason


@dataclass(frozen=True)
class Limits:
    """The trainer's own bounds, whoever writes.

    Attributes:
        floor: least share of a source that has any.
        cap: greatest share of a source.
        max_change: greatest total variation from one mixture to the next.
    """

    floor: float = 0.0
    cap: float = 1.0
    max_change: float = 1.0


@dataclass(frozen=True)
class Rejection:
    """Why a file's content is no order to follow; `digest` tells contents apart."""

    reason: str
    digest: str
    fence: int | None = None
    generation: int | None = None


class _Refused(Exception):  # noqa: N818 (a verdict, never seen outside this module)
    """The reason of a rejection."""


def read_order(
    path: str | os.PathLike[str],
    *,
    run: str,
    sources: Collection[str],
    after: tuple[int, int],
    limits: Limits | None = None,
    in_force: Mapping[str, float] | None = None,
    accept_uid: int | None = None,
    retired: Collection[str] = (),
    key: bytes | None = None,
    uid: str | None = None,
) -> Order | Rejection | None:
    """Read `mixture.json` and apply the acceptance rule. Never raises, whatever lies there.

    Args:
        path: the order file.
        run: the run an order must be for.
        sources: names an order may give weight to.
        after: highest fence and generation accepted so far.
        limits: the trainer's own bounds.
        in_force: the mixture in force; the change is measured against it, and a generation
            republished under a higher fence must still ask for it.
        accept_uid: a user whose orders count besides those of the run folder's owner.
        retired: names that it may still mention, without weight.
        key: what an order must be signed with; None: anything, signed or not.
        uid: of the run, which a signed order must name; None: any. Another run of the same id and
            key has another.

    Returns:
        The order to follow; a rejection; or None when there is no news: the file is missing,
        stale, unreadable or torn, or holds the order followed already. An order with the
        generation of `after` raises the fence and changes nothing else.
    """
    try:
        content = read_regular(path, LARGEST_ORDER)
    except NotRegularError as error:
        return Rejection(f"{path} is {error.strerror}, not a file: remove it", "")
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    fence = generation = None
    try:
        body = _decode(content.data)
        if body is None:
            return None
        # named first: the controller tells by them which of its orders was refused
        fence, generation = _peek(body, "fence"), _peek(body, "generation")
        _check_owner(path, content.uid, accept_uid)
        order = _of_run(body, run, key)
        if (order.fence, order.generation) == tuple(after):
            return None
        if key is not None and uid is not None and order.uid != uid:
            raise _Refused("it was signed for another run of this id, or before this run had a uid")
        _check_turn(order, after, in_force)
        before = None if order.generation == after[1] else in_force
        _check_mixtures(order, sources, retired, limits, before)
    except Exception as error:  # the last line of defence of the training loop
        foreseen = isinstance(error, _Refused)
        reason = str(error) if foreseen else f"{path}: {type(error).__name__} while it was read"
        return Rejection(reason, digest(content.data), fence, generation)
    return order


def order_in(data: bytes, run: str, key: bytes | None = None) -> Order | None:
    """The order of a run that a file's bytes are, signed if there is a key; None for anything else.

    Never raises. Whether the order may come into force is another question: :func:`read_order`.
    """
    try:
        body = _decode(data)
        return None if body is None else _of_run(body, run, key)
    except Exception:  # whatever lies there, it is no order
        return None


def unpublishable(order: Order) -> str | None:
    """Why no trainer could read an order, by the rule that trainers read by; None when they can."""
    signature = 1000  # bytes, at most
    try:
        data = json_bytes(order_json(order))
        if len(data) > LARGEST_ORDER - signature:
            return f"it takes {len(data):,} bytes: the most is {LARGEST_ORDER - signature:,}"
        _parse(json.loads(data))
    except ValueError:
        return "a weight is no number"
    except _Refused as refusal:
        return str(refusal)
    return None


def _of_run(body: dict[str, Any], run: str, key: bytes | None) -> Order:
    """The order in a file's content, if it was made for this run and by who may."""
    order = _parse(body)
    if key is not None and (unsigned := unsigned_reason(key, body)) is not None:
        raise _Refused(unsigned)
    if order.run != run:
        raise _Refused(f"run is {shown(order.run)}, this is {shown(run)}")
    return order


def _peek(body: dict[str, Any], key: str) -> int | None:
    value = body.get(key)
    # `status.json` repeats it, and must be readable
    return value if type(value) is int and 0 <= value <= LARGEST_NUMBER else None


def _check_owner(path: str | os.PathLike[str], uid: int, accept_uid: int | None) -> None:
    owner = Path(path).parent.stat().st_uid
    if uid not in (owner, accept_uid):
        raise _Refused(
            f"the file belongs to uid {uid}, the run folder to {owner}: "
            "set trainer.accept_uid if that user may steer"
        )


def _decode(data: bytes) -> dict[str, Any] | None:
    """The JSON object in a file; None when the read was torn."""
    if len(data) > LARGEST_ORDER:
        raise _Refused(f"more than {LARGEST_ORDER} bytes: no order is that long")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.end >= len(data):  # cut inside a character
            return None
        raise _Refused(f"not UTF-8 at byte {error.start}") from error
    try:
        body = parse_json(text)
    except json.JSONDecodeError as error:
        if _is_torn(text, error):
            return None
        raise _Refused(f"not JSON: {error.msg} (line {error.lineno})") from error
    except RecursionError as error:
        raise _Refused("nested too deeply") from error
    except ValueError as error:
        raise _Refused(str(error)[:200]) from error
    if not isinstance(body, dict):
        raise _Refused(f"a JSON {type(body).__name__} where an object belongs")
    return body


def _is_torn(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the text may be the first part of an order, or one with blocks not yet written."""
    stripped = text.rstrip()
    return (
        not stripped.endswith("}")
        or error.pos >= len(stripped)
        or error.msg.startswith("Unterminated string")
        or "\0" in text
    )


def _parse(body: dict[str, Any]) -> Order:
    if body.get("schema") != ORDER_SCHEMA:
        raise _Refused(f"schema is {shown(body.get('schema'))}, not {ORDER_SCHEMA!r}")
    rest = {key: value for key, value in body.items() if key != "checksum"}
    if body.get("checksum") != digest(canonical(rest)):
        raise _Refused("the checksum does not match the content")
    return Order(
        run=_text(body, "run", required=True),
        fence=_number(body, "fence", 0, LARGEST_TURN),
        generation=_number(body, "generation", 1, LARGEST_TURN),
        weights=_weights(body.get("weights"), "weights"),
        then=_stages(body.get("then", [])),
        decision=_text(body, "decision", LONGEST_NAME),
        policy=_text(body, "policy"),
        reason=_text(body, "reason"),
        issued_at=_text(body, "issued_at", LONGEST_NAME),
        uid=_text(body, "uid", LONGEST_NAME),
    )


def _text(
    body: dict[str, Any], key: str, longest: int = LONGEST_TEXT, *, required: bool = False
) -> str:
    value = body.get(key, None if required else "")
    if not isinstance(value, str):
        raise _Refused(f"{key} is {shown(value)}, not a text")
    if len(value) > longest:
        raise _Refused(f"{key} has {len(value):,} characters: the most is {longest:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused(f"{key} has half a surrogate pair in it") from error
    return value


def _number(body: dict[str, Any], key: str, least: int, most: int = LARGEST_NUMBER) -> int:
    value = body.get(key)
    if type(value) is not int or not least <= value <= most:
        raise _Refused(f"{key} is {shown(value)}, not an integer from {least} to {most}")
    return value


def _weights(value: Any, where: str) -> dict[str, float]:
    """Shares by name: finite, within [0, 1], summing to 1 within 1e-6."""
    if not isinstance(value, dict):
        raise _Refused(f"{where} is {shown(value)}, not an object")
    for name, share in value.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:  # NaN fails the comparison
            raise _Refused(f"{where}: {shown(name)} is {shown(share)}, not a share from 0 to 1")
    total = math.fsum(value.values())
    if not abs(total - 1) <= SUM_TOLERANCE:
        raise _Refused(f"{where} sum to {total:.9g}, not to 1")
    return {name: float(share) for name, share in value.items()}


def _stages(value: Any) -> tuple[Stage, ...]:
    if not isinstance(value, list):
        raise _Refused(f"then is {shown(value)}, not a list")
    if len(value) > MOST_STAGES:
        raise _Refused(f"then has {len(value):,} stages: the most is {MOST_STAGES:,}")
    stages: list[Stage] = []
    for index, entry in enumerate(value):
        where = f"then[{index}]"
        if not isinstance(entry, dict):
            raise _Refused(f"{where} is {shown(entry)}, not an object")
        start = _number(entry, "from_tokens", 0)
        if stages and start <= stages[-1].from_tokens:
            raise _Refused(f"{where}: from_tokens {start} is not above the stage before")
        stages.append(Stage(start, _weights(entry.get("weights"), f"{where} weights")))
    return tuple(stages)


def _check_turn(order: Order, after: tuple[int, int], in_force: Mapping[str, float] | None) -> None:
    """Neither fence nor generation ever goes back, nor far ahead."""
    fence, generation = after
    if order.fence < fence:
        raise _Refused(f"fence {order.fence} is below {fence}: its controller was replaced")
    if order.generation < generation:
        raise _Refused(f"generation {order.generation} is below {generation}, accepted already")
    for name, number, highest in (
        ("fence", order.fence, fence),
        ("generation", order.generation, generation),
    ):
        if number - highest > LARGEST_JUMP:
            raise _Refused(f"{name} {number} is more than {LARGEST_JUMP} above {highest}")
    if order.generation > generation or in_force is None:
        return
    # a plan's later stage may be what is in force under this generation
    mixtures = [order.weights, *(stage.weights for stage in order.then)]
    # what is in force was rounded to integers over SCALE, each by less than one of them
    slack = SUM_TOLERANCE + len(in_force) / SCALE
    if not any(_change(in_force, weights) <= slack for weights in mixtures):
        raise _Refused(
            f"generation {generation} republished with other weights than those in force"
        )


def _change(old: Mapping[str, float], new: Mapping[str, float]) -> float:
    """Total variation between two mixtures."""
    return math.fsum(abs(new.get(k, 0.0) - old.get(k, 0.0)) for k in {*old, *new}) / 2


def _check_mixtures(
    order: Order,
    sources: Collection[str],
    retired: Collection[str],
    limits: Limits | None,
    before: Mapping[str, float] | None,
) -> None:
    if not isinstance(sources, Set):
        sources = frozenset(sources)  # 10,000 names looked up in a list take half a minute
    mixtures = [("weights", order.weights)]
    mixtures += [(f"then[{i}] weights", stage.weights) for i, stage in enumerate(order.then)]
    for where, weights in mixtures:
        for name, share in weights.items():
            if name in retired and share:
                raise _Refused(f"{where}: {shown(name)} is retired from this run")
            if name not in sources and name not in retired:
                raise _Refused(f"{where}: {shown(name)} is no source of this run")
        if limits is not None:
            _check_limits(where, weights, limits, before)
        before = weights


def _check_limits(
    where: str, weights: Mapping[str, float], limits: Limits, before: Mapping[str, float] | None
) -> None:
    for name, share in weights.items():
        if 0 < share < limits.floor:
            raise _Refused(f"{where}: {name} at {share:g} is under the floor {limits.floor:g}")
        if share > limits.cap:
            raise _Refused(f"{where}: {name} at {share:g} is over the cap {limits.cap:g}")
    if before is None:
        return
    change = _change(before, weights)
    if change > limits.max_change + SUM_TOLERANCE:
        raise _Refused(
            f"{where}: a change of {change:.4g} is over the largest allowed {limits.max_change:g}"
        )

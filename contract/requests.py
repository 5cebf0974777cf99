"""Operators' requests: one immutable file each in ``requests/``, taken into the journal in turn.

A command writes the file and is done; the controller reads it when it looks next, be that now or
after its next start. What was taken lies in ``requests/taken/``, what could not be read in
``requests/refused/``: nothing a person asked for is lost.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mixloop.common.files import read_regular, write_json
from mixloop.common.types import Json, parse_json

from .signing import sign, unsigned_reason

SCHEMA = "mixloop/request/1"
LARGEST = 2**20
Verb = Literal["pause", "resume", "set", "pin", "unpin", "approve", "reject", "rollback", "sync"]
VERBS: tuple[str, ...] = get_args(Verb)
NEEDS_TRAINER = frozenset({"set", "pin", "approve", "rollback"})
"""What changes the mixture: it has to wait for a heartbeat to be measured against."""

_NAME = re.compile(r"^\d{13}-r-[0-9a-f]{12}\.json$")
_LAST_NUMBER = 10**13 - 1  # in the year 2286


class RequestError(ValueError):
    """A file that is no request; the message says why."""


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    ``weights``: shares by source of ``set`` and ``pin``; ``sources``: names of ``unpin`` (empty:
    all); ``decision``: the id that ``approve``, ``reject`` and ``rollback`` speak of. ``force``:
    past the hard guards.
    """

    id: str
    verb: str
    by: str
    at: str
    weights: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    decision: str = ""
    reason: str = ""
    force: bool = False


def new_request(verb: Verb, at: str, **fields: Any) -> Request:
    """A request of the person who runs this process."""
    return Request(f"r-{secrets.token_hex(6)}", verb, who(), at, **fields)


def who() -> str:
    """``user@host``, for people; it proves nothing (the file's owner does)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True)
class Addressee:
    """Whom a signed request is for, so that it is worth nothing elsewhere and later.

    ``run``: its id; ``uid``: of the journal, since one that was lost no longer tells which requests
    were taken; ``fence``: of the controller that holds it, or held it last. A journal that was
    restored from an older copy has forgotten what was taken since: it takes no request of a fence
    from before.
    """

    run: str = ""
    uid: str = ""
    fence: int = 0


ANYBODY = Addressee()


def submit(
    folder: Path, request: Request, *, to: Addressee = ANYBODY, key: bytes | None = None
) -> Path:
    """Write a request where the controller finds it.

    Args:
        folder: the run's `requests`.
        request: what a person asks for.
        to: the run and the journal it is for; of an unsigned one only the run is told.
        key: signs it, together with the addressee.

    Raises:
        OSError: the disk did not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_next_number(folder):013d}-{request.id}.json"
    body: Json = {"schema": SCHEMA, "run": to.run, **asdict(request)}
    if key is not None:
        body |= {"uid": to.uid, "fence": to.fence}
        body["hmac"] = sign(key, json.loads(json.dumps(body)))
    write_json(path, body)
    return path


def _next_number(folder: Path) -> int:
    """Milliseconds of the wall clock, and above what was asked before: the clock may step.

    One that is far wrong, which would give a name that nobody looks for, is not heard.
    """
    now = time.time_ns() // 1_000_000
    asked = [now if 0 <= now < _LAST_NUMBER else 0]
    for where in (folder, folder / "taken"):
        with contextlib.suppress(OSError):
            asked += [int(f.name[:13]) + 1 for f in where.iterdir() if _NAME.match(f.name)]
    return min(max(asked), _LAST_NUMBER)


def waiting(folder: Path) -> list[Path]:
    """The files that wait to be taken, in the order they were written; none if unreadable."""
    try:
        return sorted(entry for entry in folder.iterdir() if _NAME.match(entry.name))
    except OSError:
        return []


def read(
    path: Path, owners: frozenset[int], *, to: Addressee = ANYBODY, key: bytes | None = None
) -> Request:
    """A request.

    Args:
        path: its file.
        owners: the uids whose requests count.
        to: the run and the journal it must be for, if it is signed, and the lowest fence.
        key: what it must be signed with; None: anything, signed or not.

    Raises:
        RequestError: it is none, or somebody else's.
        OSError: it can't be read now.
    """
    content = read_regular(path, LARGEST)
    if content.uid not in owners:
        raise RequestError(f"it belongs to uid {content.uid}, who may not steer this run")
    if len(content.data) > LARGEST:
        raise RequestError(f"more than {LARGEST} bytes")
    try:
        body = parse_json(content.data.decode())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise RequestError(f"not a {SCHEMA} object")
    if key is not None:
        _check_signed(body, to, key)
    return _parse(body)


def _check_signed(body: Json, to: Addressee, key: bytes) -> None:
    if (unsigned := unsigned_reason(key, body)) is not None:
        raise RequestError(unsigned)
    if body.get("run") != to.run:
        raise RequestError("it was signed for another run")
    if body.get("uid") != to.uid:
        raise RequestError("it was signed for another journal than this; ask again")
    fence = body.get("fence")
    if not isinstance(fence, int) or fence < to.fence:
        raise RequestError("it was signed before this journal was restored; ask again")


def _parse(body: Json) -> Request:
    texts = {key: body.get(key, "") for key in ("id", "verb", "by", "at", "decision", "reason")}
    for key, value in texts.items():
        if not isinstance(value, str) or len(value) > 4000 or not _is_text(value):
            raise RequestError(f"{key} is no text")
    if texts["verb"] not in VERBS:
        raise RequestError(f"verb {texts['verb'][:40]!r} is none of {', '.join(VERBS)}")
    if not re.fullmatch(r"r-[0-9a-f]{12}", texts["id"]):
        raise RequestError(f"id {texts['id'][:40]!r} is none")
    sources = body.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(name, str) for name in sources):
        raise RequestError("sources is no list of names")
    force = body.get("force", False)
    if not isinstance(force, bool):
        raise RequestError("force is neither true nor false")
    texts["decision"] = decision_id(texts["decision"])
    return Request(
        **texts, weights=_shares(body.get("weights", {})), sources=tuple(sources), force=force
    )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shares(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise RequestError("weights is no object")
    for name, share in value.items():
        if type(share) not in (int, float) or not 0 <= share <= 1:  # NaN fails the comparison
            raise RequestError(f"weights: {name[:60]!r} is no share from 0 to 1")
    return {name: float(share) for name, share in value.items()}


def put_away(path: Path, where: Literal["taken", "refused"]) -> None:
    """Move a request that was dealt with out of the way; one that is gone already is fine."""
    folder = path.parent / where
    folder.mkdir(exist_ok=True)
    try:
        path.rename(folder / path.name)
    except FileNotFoundError:
        return


def decision_id(text: str) -> str:
    """A decision's id as people type it: ``d-000003``, or just ``3``."""
    return f"d-{int(text):06d}" if text.isdecimal() and len(text) <= 12 else text

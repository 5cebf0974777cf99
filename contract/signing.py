"""The HMAC key that orders and requests may have to be signed with. Light: standard library only.

A checksum tells a torn file from a whole one; it proves nothing about who wrote it. With a key,
whoever may write into the run folder but can't read the key can delay a run and not steer it.
HMAC-SHA256 (RFC 2104) over the canonical JSON, compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixloop.common.files import NotRegularError, canonical, read_regular

KEY_FILE = "MIXLOOP_KEY_FILE"
"""Environment variable that names the key file where run.yaml doesn't (`trainer.key_file`)."""

MIN_BYTES, MAX_BYTES = 16, 4096
_FORBIDDEN = stat.S_IWGRP | stat.S_IRWXO
_PREFIX = "hmac-sha256:"
_OUTSIDE = frozenset({"checksum", "hmac"})


class KeyFileError(ValueError):
    """A key file that can't be used; the message is one line and never shows the key."""


def key_place(configured: str | os.PathLike[str] | None) -> Path | None:
    """Where the key lies: as configured, else as the environment says; None: unsigned."""
    if configured is not None:
        return Path(configured)
    named = os.environ.get(KEY_FILE)
    return Path(named) if named else None


def key_for(configured: str | os.PathLike[str] | None) -> bytes | None:
    """The key of a run, None where none is configured.

    Raises:
        KeyFileError: see :func:`read_key`.
    """
    place = key_place(configured)
    return None if place is None else read_key(place)


def read_key(path: str | os.PathLike[str]) -> bytes:
    """A key: the bytes of a regular file, without white space at its ends.

    Raises:
        KeyFileError: it is missing, a link or no file, it is somebody else's, others may read it
            (or the group write it), others could put another in its place, or it holds fewer than
            16 or more than 4096 bytes.
    """
    make = f"make one with `(umask 077; openssl rand -hex 32 > {path})`"
    try:
        # where the folder really is: a link on the way may lead elsewhere a moment later
        folder = Path(os.path.realpath(Path(path).parent, strict=True))
        replaceable = _replaceable(folder)
        data, owner, mode = read_regular(folder / Path(path).name, MAX_BYTES)
        key = data.strip()
    except NotRegularError as error:
        raise KeyFileError(f"key_file: {path} is {error.strerror}, not a file") from None
    except FileNotFoundError:
        raise KeyFileError(f"key_file: {path}: no such file; {make}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise KeyFileError(f"key_file: {path}: {getattr(error, 'strerror', error)}") from None
    if owner not in _trusted():
        raise KeyFileError(
            f"key_file: {path}: it is user {owner}'s, who may read and change it; use a copy that "
            "is your own"
        )
    if replaceable is not None:
        raise KeyFileError(f"key_file: {path}: {replaceable}")
    if mode & _FORBIDDEN:
        raise KeyFileError(
            f"key_file: {path}: mode {stat.S_IMODE(mode):o} lets others at it; chmod 600 {path}"
        )
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        size = f"under {MIN_BYTES}" if len(key) < MIN_BYTES else f"over {MAX_BYTES}"
        raise KeyFileError(f"key_file: {path}: {size} bytes; {make}")
    return key


def _trusted() -> set[int]:
    """The users who may hold the key: who runs this, and root."""
    return {0, os.geteuid()}


def _replaceable(folder: Path) -> str | None:
    """How somebody else could put another key there; None where nobody can."""
    trusted = _trusted() | _nobody()
    for here in (folder, *folder.parents):
        facts = here.stat()
        if facts.st_uid not in trusted and here != here.parent:
            return f"{here} is user {facts.st_uid}'s, who could put another there; move it"
        # in a sticky folder, as /tmp, nobody can move what isn't theirs
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not facts.st_mode & stat.S_ISVTX:
            mode = stat.S_IMODE(facts.st_mode)
            return f"{here}, mode {mode:o}, lets others put another there; chmod go-w {here}"
    return None


def _nobody() -> set[int]:
    """As whom root's folders appear in a container that doesn't know root (user_namespaces(7))."""
    try:
        known = Path("/proc/self/uid_map").read_text("ascii").split()
        if known == ["0", "0", "4294967295"]:
            return set()
        return {int(Path("/proc/sys/kernel/overflowuid").read_text("ascii"))}
    except (OSError, ValueError):  # no Linux
        return set()


def sign(key: bytes, body: Mapping[str, Any]) -> str:
    """The value of `hmac`: over the canonical JSON without the keys `checksum` and `hmac`.

    Raises:
        ValueError: NaN or an infinity is in it.
    """
    rest = {name: value for name, value in body.items() if name not in _OUTSIDE}
    return _PREFIX + hmac.new(key, canonical(rest), hashlib.sha256).hexdigest()


def is_signed(key: bytes, body: Mapping[str, Any]) -> bool:
    """Whether `hmac` is right, in time that doesn't depend on where it is wrong."""
    signature = body.get("hmac")
    if not isinstance(signature, str) or not signature.isascii():
        return False
    try:
        return hmac.compare_digest(signature, sign(key, body))
    except (ValueError, RecursionError):  # NaN in it, or a depth that can't be written again
        return False


def unsigned_reason(key: bytes, body: Mapping[str, Any]) -> str | None:
    """Why a body is not from someone who has the key; None when it is."""
    if "hmac" not in body:
        return (
            "it is not signed, and this run has a key: its writer needs trainer.key_file "
            f"or {KEY_FILE}"
        )
    return None if is_signed(key, body) else "its hmac is wrong: its writer has another key"

"""Hostile files: what hypothesis makes of valid ones. Every choice is drawn from its random."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mixloop.common.files import canonical, digest
from mixloop.controller.journal.packing import unpack
from mixloop.controller.journal.schema import SCHEMA_VERSION

Json = Any
Path_ = tuple[Any, ...]

DEEP = "[" * 4000 + "]" * 4000
NAN, INFINITE = float("nan"), float("inf")
WEIRD: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63) - 1, 10**400),
    *(0.5, -0.0, 1e308, -1e308, 5e-324, NAN, INFINITE, -INFINITE),
    *("", "\0", "\ud800", "\x1b[2J\x1b]0;owned\x07", "<script>alert(1)</script>", "../../etc"),
    *("$(reboot)", "9" * 5000, "x" * 70_000, "\u202e", "nan", "1e999", "web", "d-000001"),
    *([], {}, [[]], [None], {"": None}, {"web": 1}, {"web": NAN}, [1, 2], {"benchmarks": []}),
)


def places(value: Json, at: Path_ = ()) -> Iterator[Path_]:
    """Every place in a JSON value, the root first."""
    yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*at, index))


def put(value: Json, at: Path_, new: Json) -> Json:
    """The value with another one at a place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = put(copy[at[0]], at[1:], new)
    return copy


def drop(value: Json, at: Path_) -> Json:
    """The value without what is at a place."""
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = drop(copy[at[0]], at[1:])
    return copy


def wrong(rng: random.Random, value: Json) -> Json:
    """Structured wrongness: up to three places replaced, dropped or given to another."""
    for _ in range(rng.randint(1, 3)):
        all_places = list(places(value))
        at = rng.choice(all_places)
        how = rng.randint(0, 9)
        if how == 0 and at:
            value = drop(value, at)
        elif how == 1 and at and isinstance(at[-1], str):
            value = put(value, at[:-1], {**_get(value, at[:-1]), rng.choice(["x", ""]): 1})
        elif how == 2:
            value = put(value, at, _get(value, rng.choice(all_places)))
        else:
            value = put(value, at, rng.choice(WEIRD))
    return value


def _get(value: Json, at: Path_) -> Json:
    for key in at:
        value = value[key]
    return value


def text(value: Json) -> bytes:
    """JSON as careless writers have it: NaN and half surrogates too."""
    return json.dumps(value, allow_nan=True).encode("utf-8", "surrogatepass")


def damaged(rng: random.Random, data: bytes) -> bytes:  # noqa: PLR0911 - one a way
    """Bytes gone wrong: noise, cut, flipped, repeated, replaced, nested, long, another charset."""
    how = rng.randint(0, 10)
    cut = rng.randint(0, len(data))
    if how == 0:
        return rng.randbytes(rng.randint(0, 300))
    if how == 1:
        return data[:cut]
    if how == 2:
        flipped = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            flipped[rng.randint(0, len(data) - 1)] ^= 1 << rng.randint(0, 7)
        return bytes(flipped)
    if how == 3:
        return data + data
    if how == 4:
        end = rng.randint(cut, len(data))
        return data[:cut] + data[end:]
    if how == 5:
        return data[:cut] + b"\0" * rng.randint(1, 600) + data[cut:]
    if how == 6:
        return rng.choice([DEEP.encode(), b'{"a":' * 3000, b"[" * 100_000])
    if how == 7:  # a key twice
        return b'{"run": "x", "schema": 1, ' + data.lstrip()[1:]
    if how == 8:
        return rng.choice([b"", b"null", b"[]", b"{}", b"0", b'"x"', b"\xef\xbb\xbf" + data])
    if how == 9:
        return data.decode("utf-8", "replace").encode("utf-16")
    return data[:cut] + b" " * rng.choice([10, 3_000_000]) + data[cut:]


def made(rng: random.Random, data: bytes, seal: Callable[[Json], bytes] = text) -> bytes:
    """A hostile file from a valid one; `seal` gives a body the checksums it needs to be read."""
    if rng.randint(0, 2) == 0:
        return damaged(rng, data)
    body = wrong(rng, json.loads(data))
    try:
        return seal(body)
    except (ValueError, RecursionError):
        data = text(body)
        return data.replace(b"Infinity", b"1e999") if rng.randint(0, 1) else data  # JSON has that


def sealed_order(body: Json) -> bytes:
    """An order under a right checksum."""
    if not isinstance(body, dict):
        return text(body)
    rest = {key: value for key, value in body.items() if key != "checksum"}
    return text({**rest, "checksum": digest(canonical(rest))})


def schedule(rng: random.Random, data: bytes) -> bytes:
    """A hostile schedule: damaged as a whole, or lines wrong under a right CRC."""
    if rng.randint(0, 2) == 0:
        return damaged(rng, data)
    lines = data.splitlines()
    for _ in range(rng.randint(1, 2)):
        index = rng.randint(0, len(lines) - 1)
        body = wrong(rng, json.loads(data.splitlines()[0]))
        if rng.randint(0, 1):
            body = wrong(rng, json.loads(data.splitlines()[rng.randint(0, len(lines) - 1)]))
        line = text(body)
        if isinstance(body, dict):
            body.pop("crc", None)
            with contextlib.suppress(ValueError, RecursionError):
                line = text({**body, "crc": f"{zlib.crc32(canonical(body)):08x}"})
        lines[index] = line.replace(b"\n", b" ")
    if rng.randint(0, 3) == 0:
        rng.shuffle(lines)
    return b"\n".join(lines) + b"\n"


SPARSE = 20 * 2**30


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)  # a whole path may be too long for one


def _sparse(path: Path) -> None:
    """A file that says it has gigabytes and holds nothing, behind what it held."""
    with path.open("ab") as file:
        file.truncate(SPARSE)


PLACES: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": _socket,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a FIFO": lambda path: (
        os.mkfifo(f"{path}.fifo"),
        path.symlink_to(f"{path}.fifo"),
    )[1],
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a sparse file": _sparse,
}
"""What may lie in a file's place, by name: makes it there."""


def removed(path: Path) -> None:
    """Take away what :data:`PLACES` has made."""
    Path(f"{path}.fifo").unlink(missing_ok=True)
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def journal(rng: random.Random, path: Path) -> str:
    """Make the journal there hostile, in place. Returns how."""
    how = rng.randint(0, 5)
    data = path.read_bytes()
    if how == 0:
        path.write_bytes(rng.randbytes(rng.randint(0, 3000)))
        return "noise"
    if how == 1:
        path.write_bytes(data[: rng.randint(0, len(data))])
        return "cut"
    if how == 2:
        spoilt = bytearray(data)
        for _ in range(rng.randint(1, 40)):
            start = rng.randint(0, len(data) - 1)
            spoilt[start : start + 8] = rng.randbytes(min(8, len(data) - start))
        path.write_bytes(bytes(spoilt))
        return "spoilt"
    db = sqlite3.connect(path, isolation_level=None)
    try:
        if how == 3:
            db.execute(f"PRAGMA user_version={rng.choice([0, 1, 2, SCHEMA_VERSION, 99, -1])}")
            return "version"
        tables = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for _ in range(rng.randint(1, 3)):
            _spoil(rng, db, rng.choice(tables))
    finally:
        db.close()
    return "rows"


def _spoil(rng: random.Random, db: sqlite3.Connection, table: str) -> None:
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns) if columns else None
    try:
        if rng.randint(0, 8) == 0 or column is None:
            db.execute(f"DROP TABLE {table}" if rng.randint(0, 1) else f"DELETE FROM {table}")
            return
        row = db.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()
        new: Json = rng.choice(WEIRD)
        if (
            row is not None
            and isinstance(row[0], str)
            and row[0][:1] in "{["
            and rng.random() < 0.7
        ):
            new = text(wrong(rng, unpack(row[0]))).decode("utf-8", "replace")
        if isinstance(new, list | dict):
            new = json.dumps(new)
        if isinstance(new, str):
            new = new.encode("utf-8", "replace").decode()
        if isinstance(new, int) and abs(new) >= 2**63:
            new = float(2**63)
        db.execute(f"UPDATE {table} SET {column} = ?", (new,))
    except sqlite3.Error:
        return  # a constraint refused it

"""JSON in the journal's columns, long values compressed."""

from __future__ import annotations

import json
import sqlite3
import zlib
from typing import Any

Row = dict[str, Any]

JSON_COLUMNS = frozenset(
    {"weights", "weights_before", "weights_proposed", "weights_after", "plan", "guards", "evidence"}
    | {"scorecard", "payload", "detail", "drawn", "losses", "asked"}
)


class JournalError(Exception):
    """The journal cannot be used; the message is one line for a person."""


_PACKED = b"\x01"  # how a packed column begins: the version of _WORDS
_PACK_ABOVE = 40  # characters of JSON
_LARGEST_ENTRY = 2**28  # bytes of JSON: what deflate makes of a few kilobytes can fill memory
# What entries are full of, the commonest last (deflate finds what is near most cheaply). Part of
# the file format: packed entries can't be read with any other.
_WORDS = (
    b'{"name":"step-000","tags":{},"params":{"step":"","tokens":"","path":"/checkpoints/","weight.":'
    b'"datasets":{"train/loss":,"train/learning_rate":,"train/grad_norm":,"train/tokens_per_second":'
    b'"epochs/":,"source_loss/":,"mixture_realised/":,"system/":{"checkpoint":"/checkpoints/step-000'
    b'"benchmarks":{"gsm8k":{"status":"ok","metrics":{"bits_per_byte":{"value":,"stderr":,"n":,'
    b'"higher_is_better":false,"asked":,"excluded":0,"unparsed":null},"accuracy":{"value":,'
    b'"exact_match":,"pass_at_1":{"higher_is_better":true,"items":{"i0":{"bits_per_byte":,"bytes":'
    b'"humaneval":"mmlu":"math":"reason":null,"data":"packages: of items","data_kind":'
    b'"cost":{"seconds":,"cpu_seconds":,"items":,"tokens":,"asked_tokens":'
    b'"settings_digest":"","engine":{},"evidence":{"rule":"tests":"claims":'
    b'"guards":[{"guard":"significance","action":"passed","detail":"nothing to compare","before":'
    b'{"guard":"dead-band","guard":"dwell","guard":"phase","guard":"loss spike","guard":"vetoes",'
    b'{"guard":"trust region","guard":"simplex","guard":"floor and cap","guard":"epoch ledger",'
    b'"action":"changed","action":"flagged","action":"blocked","after":{"web":"code":"maths":'
    b'"metric":"bits_per_byte","gain":,"stderr":,"n":,"from_step":,"to_step":,"gain_before":null,'
    b'"stderr_before":null,"steps_before":null}"outcome.gsm8k":"+0.0 \xc2\xb1 0.0 bits_per_byte",'
    b'"outcome_step":{"metrics":{"order/applied_step":,"order/generation":,"mixture/web":'
    b'"mixture/code":"mixture/maths":},"tokens":,"ms":1},"start_ms":1,"end_ms":1,"request":{"scores":'
    b'{"gsm8k bits_per_byte":" \xc2\xb1 (n=)"},"step":,"tokens":,"weights":{"response":{"verdict":'
    b'"intervene","hold","inconclusive","superseded","expired","reason":"","weights_before":{'
    b'"weights_after":{"weights_proposed":{"generation":"spans":[["observe",null,{"step":,"tokens":'
    b'["decide",null,{"policy":"rules",["guard",null,{["guard floor and cap","guard",{"verdict":'
    b'"tags":{"applied_step":,"applied_tokens":,"generation":,"decision":"d-000","phase":"stable",'
    b'"in_force":true,"drawn":{"id":"d-000","name":"publish","name":"applied","name":"outcome",'
    b'"inputs":{"generation":,"weights":{"outputs":{"file":"mixture.json","fence":'
)


def dumps(value: object) -> str | None:
    """Compact JSON, None kept as SQL NULL. Non-finite numbers are refused."""
    if value is None:
        return None
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def pack(value: object) -> str | bytes | None:
    """JSON as a column holds it: text while it is short, deflated with :data:`_WORDS` above.

    Thousands of decisions say the same in nearly the same words.
    """
    text = dumps(value)
    if text is None or len(text) < _PACK_ABOVE:
        return text
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_WORDS)
    return _PACKED + squeeze.compress(text.encode()) + squeeze.flush()


def unpack(stored: str | bytes) -> Any:
    """What :func:`pack` was given.

    Raises:
        JournalError: packed in a way that a later mixloop invented.
        ValueError: damaged.
    """
    if isinstance(stored, str):
        return json.loads(stored)
    if stored[:1] != _PACKED:
        raise JournalError("an entry is packed in a way that this mixloop doesn't know")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_WORDS)
    try:
        text = inflate.decompress(stored[1:], _LARGEST_ENTRY)
    except zlib.error as error:  # no ValueError, which all who read a journal expect of damage
        raise ValueError(f"a packed entry is damaged: {error}") from error
    if inflate.unconsumed_tail:
        raise ValueError(f"a packed entry is of more than {_LARGEST_ENTRY} bytes")
    return json.loads(text)


def decode(row: sqlite3.Row) -> Row:
    return {
        key: unpack(row[key]) if key in JSON_COLUMNS and row[key] is not None else row[key]
        for key in row.keys()  # noqa: SIM118 - sqlite3.Row iterates over values, not keys
    }

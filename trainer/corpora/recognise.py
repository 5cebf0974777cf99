"""What a file is, by its content; its name only decides what content leaves open."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from .compressed import HEAD, SUFFIXES, UNREADABLE, bare_name, head_of

RECORDS = ("jsonl", "json", "csv", "parquet", "arrow")
"""Formats of records with keys or columns."""

FORMATS = (*RECORDS, "text")
IN_DOUBT = "give --format"
"""How a doubt that a word can settle ends."""

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")

_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
}
_BINARY = (
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"%PDF", "a PDF; extract its text"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a numpy array"),
    (b"Obj\x01", "Avro"),
    (b"ORC", "ORC"),
    (b"SQLite format 3", "an SQLite database"),
    (b"WARC/", "a web archive (WARC, WET); extract its text"),
    (b"<mediawiki", "a MediaWiki dump; extract its text"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file (git lfs pull)"),
    (b"\xff\xfe", "not UTF-8 but UTF-16 text; convert it"),
    (b"\xfe\xff", "not UTF-8 but UTF-16 text; convert it"),
)
_LINES = 8  # that tell whether a file is one of JSON lines
_STREAM = b"\xff\xff\xff\xff"  # an arrow stream's first message follows it


class Recognised(NamedTuple):
    """A file's format and compression; or no format, and why."""

    format: str | None
    compression: str | None = None
    why: str = ""


def named_format(path: Path) -> str | None:
    """The format that a file's name says; None where it says none."""
    return _BY_SUFFIX.get(Path(bare_name(path)).suffix)


def recognise(path: Path, wanted: str | None = None) -> Recognised:
    """What a file is.

    Args:
        wanted: the format that the user says it is; then only its compression is looked at.
    """
    try:
        head, compressed = head_of(path)
    except UNREADABLE as error:
        return Recognised(None, why=f"unreadable: {error}")
    if not head:
        return Recognised(None, compressed, "empty")
    if wanted is not None:
        return Recognised(wanted, compressed)
    found = _by_content(head)
    if found == "text" and compressed is None and path.name.lower().endswith(SUFFIXES):
        return Recognised(None, None, f"unreadable: named {path.suffix}, but not compressed")
    kind, why = _decided(found, named_format(path))
    return Recognised(kind, compressed, why)


def _decided(found: str, named: str | None) -> tuple[str | None, str]:
    """A format, or None and why, of what content and name say."""
    if found in ("parquet", "arrow"):
        return found, ""
    if found not in ("jsonl", "json", "text"):
        return None, found
    if named in ("parquet", "arrow"):
        return None, f"not a readable {named} file, which its name says"
    if found == "text":
        # a damaged line of JSON is told when it is read; what no name claims is text
        return "jsonl" if named in ("json", "jsonl") else named or "text", ""
    if named in ("text", "csv"):
        return None, f"{found} by its content, {named} by its name: {IN_DOUBT}"
    return found, ""


def _by_content(head: bytes) -> str:
    """A format, or what else it is in words."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", _STREAM)):
        return "arrow"
    for magic, words in _BINARY:
        if head.startswith(magic):
            return words
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if b"\x00" in head:
        return "binary"
    return _json_kind(head) or "text"


def _json_kind(head: bytes) -> str | None:
    """Whether text is JSON lines (`jsonl`), other JSON (`json`), or none (None)."""
    text = head.decode("utf-8-sig", "replace").lstrip()
    if not text.startswith("{"):
        # an array of records; `[1] Smith` is no JSON
        return "json" if re.match(r"\[\s*\{", text) and _is_json(text, len(head)) else None
    lines = [line for line in text.split("\n")[:-1] if line.strip()][:_LINES]
    if lines:
        objects = sum(map(_is_object, lines))
        if 2 * objects >= len(lines):  # one line may be damaged
            return "jsonl"
        return "json" if _is_json(text, len(head)) else None
    return "jsonl" if _is_json(text, len(head)) else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except RecursionError:
        return True
    except ValueError:
        return False


def _is_json(text: str, size: int) -> bool:
    """Whether text begins with a JSON value, or with as much of one as a head of a file holds."""
    try:
        json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return True
    except json.JSONDecodeError as error:
        return size >= HEAD and (error.pos >= len(text) - 16 or "Unterminated" in error.msg)
    return True

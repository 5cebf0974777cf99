"""JSON that is not a line a record: arrays, and objects over several lines, read as they come.

Memory holds one value at a time, not the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

_READ = 2**18
_SPACE = " \t\n\r"


def json_values(file: IO[str]) -> Iterator[Any]:
    """The elements of an array, or the values of a file that follow one another.

    Raises:
        json.JSONDecodeError: what stands there is no JSON.
        RecursionError: it is nested too deeply.
        UnicodeDecodeError: as the file raises it.
    """
    decoder = json.JSONDecoder()
    text, at, ended = "", 0, False
    reads = _READ
    array: bool | None = None
    while True:
        while at < len(text) and text[at] in _SPACE + ("," if array else ""):
            at += 1
        if array is None and at < len(text):
            array = text[at] == "["
            at += array
            continue
        if at < len(text) and array and text[at] == "]":
            return
        if at < len(text):
            try:
                value, end = decoder.raw_decode(text, at)
                # a number or a word may go on in what isn't read yet
                if ended or end < len(text):
                    yield value
                    at, reads = end, _READ
                    continue
            except json.JSONDecodeError:
                if ended:
                    raise
        elif ended:
            if array:
                raise json.JSONDecodeError("the array does not end: cut short?", text, at)
            return
        # twice as much each time, so that a long value is not begun anew too often
        more = file.read(reads)
        ended = not more
        text, at = text[at:] + more, 0
        reads *= 2

"""Recorded batches against the schedule: is what the ranks say they drew what they had to draw?

A line is what :class:`mixloop.trainer.run.SampleTrace` writes: step, first sample, rank, world,
`source` and `index` as [accumulation, rows], and, if the loop added it, the `sha256` of its token
ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.run import ids_hash

from .facts import Finding, TraceFacts
from .replay import Branch, RankBatch, ScheduleReplay

Ints = npt.NDArray[np.int64]
Gather = Callable[[RankBatch], Ints | None]
_KEYS = ("step", "sample", "rank", "world")


class TraceCheck:
    """Goes through traces line by line.

    Args:
        gather: token ids of what a rank saw, shape [accumulation, rows, L]; None where the stores
            are not at hand.
    """

    def __init__(self, replay: ScheduleReplay, gather: Gather) -> None:
        self._final = replay.final
        self._gather = gather
        self._left_branches: list[Branch] = []
        for number in reversed(replay.opens):
            if number != self._final.opened.incarnation:
                self._left_branches.append(replay.branch(number))
            shorter = replay.branch_without_last(number)
            if shorter is not None:
                self._left_branches.append(shorter)
        self._files = self._lines = self._verified = self._left = self._hashed = 0
        self._ranks: dict[tuple[int, int], set[int]] = {}

    def file(self, where: str, lines: Iterable[str]) -> Iterator[Finding]:
        """Findings on one trace; a torn last line (a killed rank's) is let be."""
        self._files += 1
        torn: Finding | None = None
        for number, text in enumerate(lines, start=1):
            if torn is not None:
                yield torn
                torn = None
            try:
                line = _parsed(text)
            except ValueError as error:
                torn = Finding("trace", where, f"unreadable: {error}", number)
                continue
            self._lines += 1
            problem = self._line(line)
            if problem is not None:
                rank = f"rank {line['rank']} of {line['world']}"
                detail = f"{rank}: {problem}"
                yield Finding("trace", where, detail, number, line["step"], line["sample"])

    def _line(self, line: Mapping[str, Any]) -> str | None:
        problem = self._differs(self._final, line)
        if problem is None:
            self._verified += 1
            self._ranks.setdefault((line["step"], line["world"]), set()).add(line["rank"])
            return None
        for at, branch in enumerate(self._left_branches):
            if self._differs(branch, line) is None:
                self._left += 1
                self._left_branches.insert(0, self._left_branches.pop(at))  # the next is of it too
                return None
        return problem

    def _differs(self, branch: Branch, line: Mapping[str, Any]) -> str | None:
        try:
            batch = branch.rank_batch(line["step"], line["rank"], line["world"])
        except ValueError as error:
            return str(error)
        if batch.sample != line["sample"]:
            return f"sample {line['sample']} where the step begins with {batch.sample}"
        for key, expected in (("source", batch.source), ("index", batch.index)):
            recorded = np.asarray(line[key])
            if recorded.shape != expected.shape:
                return f"{key} has shape {list(recorded.shape)}, not {list(expected.shape)}"
            wrong = np.argwhere(recorded != expected)
            if wrong.size:
                micro, row = map(int, wrong[0])
                return (
                    f"{key} {int(recorded[micro, row])} where the schedule gives "
                    f"{int(expected[micro, row])} (micro-batch {micro}, row {row})"
                )
        return self._hash(batch, line.get("sha256"))

    def _hash(self, batch: RankBatch, recorded: object) -> str | None:
        if recorded is None:
            return None
        ids = self._gather(batch)
        if ids is None:
            return None
        self._hashed += 1
        derived = ids_hash(ids)
        if derived != recorded:
            return f"token ids have the hash {str(recorded)[:16]}…, derived again {derived[:16]}…"
        return None

    def facts(self) -> TraceFacts:
        """What was gone through."""
        final = self._final
        whole = sorted(
            step
            for (step, world), ranks in self._ranks.items()
            if len(ranks) == world == final.samples_of(step)[0].world_size
        )
        span = whole[-1] - whole[0] + 1 if whole else 0
        return TraceFacts(
            self._files, self._lines, self._verified, self._left, self._hashed, len(whole),
            span - len(whole),
        )  # fmt: skip


def _parsed(text: str) -> dict[str, Any]:
    """A line with the keys it needs, of the right types.

    Raises:
        ValueError: it is not such a line.
    """
    line = json.loads(text)
    if not isinstance(line, dict):
        raise ValueError("not an object")
    for key in _KEYS:
        if not isinstance(line.get(key), int) or isinstance(line[key], bool):
            raise ValueError(f"{key} is {line.get(key)!r}, not a whole number")
    for key in ("source", "index"):
        value = np.asarray(line.get(key))
        if value.ndim != 2 or value.dtype.kind != "i":
            raise ValueError(f"{key} is not a table of whole numbers")
    return line

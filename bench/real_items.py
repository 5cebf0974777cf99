"""The items of `bench/real.py`: those that steer (A) and those that judge (B), disjoint.

Policies, branches and searches see A only. B is asked of finished checkpoints alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from mixloop.evals.items import packaged

Row = dict[str, Any]

SIDES = ("steering", "judging")
BENCHMARKS = ("mmlu", "gsm8k", "math", "humaneval")


def read_items(data: Path | None) -> dict[str, list[Row]]:
    """Every item by benchmark: from ``data`` (``NAME/test.jsonl``), else from the packages.

    Without ``data`` GSM8K and MATH are left out: the packages have 8 and 4 of their items.
    """
    items: dict[str, list[Row]] = {}
    for name in BENCHMARKS:
        file = data / name / "test.jsonl" if data is not None else Path()
        if data is not None and file.is_file():
            items[name] = read_rows(file)
        elif name in ("mmlu", "humaneval"):
            items[name] = [dict(row.content) for row in packaged(name)]
    return items


def worked_problems(data: Path | None) -> list[str]:
    """The small source of high quality: GSM8K's training problems in ``data``, else packaged ones.

    The packaged ones are the worked examples that lm-eval shows of GSM8K and MATH.
    """
    file = data / "gsm8k" / "train.jsonl" if data is not None else Path()
    if data is not None and file.is_file():
        return [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in read_rows(file)]
    gsm8k = (f"Question: {r['question']}\nAnswer: {r['answer']}" for r in _rows_of("gsm8k"))
    math = (f"Problem:\n{r['problem']}\n\nSolution: {r['solution']}" for r in _rows_of("math"))
    return [*gsm8k, *math]


def _rows_of(name: str) -> list[Row]:
    return [dict(row.content) for row in packaged(name)]


def split(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Two disjoint halves; MMLU's by subject, so that each subject is on both sides.

    Rows with the same question are one item, so that no question is on both sides.
    """
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in {question(row): row for row in rows}.values():
        groups[str(row.get("subject", ""))].append(row)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for index, name in enumerate(sorted(groups)):
        group = sorted(groups[name], key=question)
        Random(f"{seed}:{name}").shuffle(group)
        odd = index % 2  # of an odd number the extra one goes to each side in turn
        middle = (len(group) + odd) // 2
        sides[0].extend(group[:middle])
        sides[1].extend(group[middle:])
    return sides


def question(row: Row) -> str:
    """What an item asks, which is what makes it the same item."""
    return str(row.get("question") or row.get("problem") or row.get("prompt"))


def write_items(items: dict[str, list[Row]], out: Path, seed: int) -> dict[str, dict[str, int]]:
    """Both sides as ``SIDE/NAME/test.jsonl``; returns how many items each has."""
    counts: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    for name, rows in items.items():
        for side, part in zip(SIDES, split(rows, seed), strict=True):
            folder = out / side / name
            folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            (folder / "test.jsonl").write_text(lines, encoding="utf-8")
            counts[side][name] = len(part)
    return counts


def held_out(items: dict[str, list[Row]]) -> Iterator[str]:
    """Every text that no source may contain: questions, with their answers where they are text."""
    for row in (row for rows in items.values() for row in rows):
        answer = row.get("answer")
        parts = [question(row), answer if isinstance(answer, str) else "", *row.get("choices", ())]
        parts += [row.get("solution", ""), row.get("canonical_solution", "")]
        yield " ".join(part for part in parts if part)
        yield question(row)


def read_rows(path: Path) -> list[Row]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]

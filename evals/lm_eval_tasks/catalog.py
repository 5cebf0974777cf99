"""The names of lm-eval's own tasks, groups and tags, found by a glance at its task files.

lm-eval's `TaskManager` parses every file, which takes ten times as long; a name is all that is
needed here.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.evals import BENCHMARKS
from mixloop.evals.items import ItemsError, read_task_file, stock_tasks

_KEY = re.compile(
    r"""^["']?(task|group|tag|include)["']?:[ \t]*(.*(?:\n[ \t]*-[ \t].*)*)""", re.MULTILINE
)


@dataclass(frozen=True)
class Catalog:
    """Task and group names with their files, and tags with the names of their tasks."""

    files: Mapping[str, Path]
    tags: Mapping[str, tuple[str, ...]]

    def names(self) -> list[str]:
        """Every name that can be asked for."""
        return sorted({*self.files, *self.tags})


@functools.cache
def catalog() -> Catalog:
    """lm-eval's names, read once per process.

    Raises:
        ItemsError: lm-eval is not installed.
    """
    try:
        root = stock_tasks()
    except ImportError as error:
        raise ItemsError(f"{error}: pip install lm-eval") from error
    files: dict[str, Path] = {}
    tags: dict[str, list[str]] = {}
    for path in sorted(root.glob("**/*.yaml"), key=lambda p: p.as_posix()):
        keys = _keys(path)
        name = _first(keys.get("group", "")) or _first(keys.get("task", ""))
        # of two files with one name lm-eval takes the first too
        if name and files.setdefault(name, path) is path and "group" not in keys:
            for tag in _tags(path):
                tags.setdefault(tag, []).append(name)
    _keys.cache_clear()
    return Catalog(files, {tag: tuple(sorted(names)) for tag, names in tags.items()})


@functools.cache
def _keys(path: Path) -> dict[str, str]:
    """The few top-level keys that name things, each with its text."""
    try:
        return dict(_KEY.findall(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return {}


def _tags(path: Path) -> list[str]:
    """The tags of a task file, or those of what it includes."""
    keys = _keys(path)
    if "tag" in keys:
        return _words(keys["tag"])
    return [tag for file in _words(keys.get("include", "")) for tag in _tags(path.parent / file)]


def _first(text: str) -> str:
    return next(iter(_words(text.split("\n", maxsplit=1)[0])), "")


def _words(text: str) -> list[str]:
    """The names in a YAML value: one, a list in brackets, or one of lines."""
    lines = [line.split(" #")[0].strip().removeprefix("- ") for line in text.split("\n")]
    parts = [part for line in lines for part in line.strip("[]").split(",")]
    return [word for part in parts if (word := part.strip().strip("\"'"))]


def unknown_benchmarks(names: Iterable[str]) -> dict[str, str]:
    """Which of these are neither one of the four nor lm-eval's, each with what may be meant.

    The suggestion is a clause such as `did you mean 'hellaswag'?`. Reads lm-eval's task files
    (seconds) only where a name is not one of the four.
    """
    further = [name for name in names if name not in BENCHMARKS]
    catalogued = catalog().names() if further else []
    unknown = set(further).difference(catalogued)
    return {name: _suggestion(name, catalogued) for name in further if name in unknown}


def _suggestion(name: str, catalogued: Iterable[str]) -> str:
    """`did you mean 'gsm8k'?`, the four first, or what can be named at all."""
    by_fold = {task.casefold(): task for task in catalogued}
    for group in (BENCHMARKS, by_fold):
        close = difflib.get_close_matches(name.casefold(), group, n=1, cutoff=0.7)
        if close:
            return f"did you mean {by_fold.get(close[0], close[0])!r}?"
    return f"name one of {', '.join(BENCHMARKS)} or a task of lm-eval"


def members(name: str) -> dict[str, Path]:
    """The tasks a name stands for, with their files: itself, or those of its group or tag.

    Raises:
        ItemsError: lm-eval has no such name, or it is a group that changes its tasks.
    """
    files, tags = catalog().files, catalog().tags
    if name in tags and name not in files:
        return {task: files[task] for task in tags[name]}
    if name not in files:
        suggestion = _suggestion(name, catalog().names())
        raise ItemsError(f"{name}: lm-eval has no such task; {suggestion}")
    content = read_task_file(files[name])
    if "group" not in content:
        return {name: files[name]}
    tasks: dict[str, Path] = {}
    for member in content.get("task") or []:
        tasks |= members(_member_name(name, member))
    return tasks


def _member_name(group: str, member: Any) -> str:
    if isinstance(member, str):
        return member
    if isinstance(member, dict) and list(member) == ["task"]:
        return str(member["task"])
    raise ItemsError(f"{group}: this group of lm-eval's changes its tasks; name single tasks of it")

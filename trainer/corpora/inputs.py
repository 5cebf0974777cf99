"""What of the inputs is meant, what is read, and what is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .dataset_layout import incomplete_sets


@dataclass(frozen=True)
class Choice:
    """What of the inputs is meant.

    Args:
        split: of datasets and of folders laid out as one; None: `train`, or all where none is.
        config: a dataset's configuration, or a folder's subfolder.
        format: of the files, for what their content leaves open.
        include: patterns of the files of a folder to take, by path inside it or by name.
    """

    split: str | None = None
    config: str | None = None
    format: str | None = None
    include: tuple[str, ...] = ()


@dataclass(frozen=True)
class Input:
    """What is read: a file, a folder of shards (`mds`) or a dataset (`saved` to disk, `hub`)."""

    format: str
    location: str
    compression: str | None = None
    split: str | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Left:
    """A file that is not read, and why."""

    location: str
    why: str


@dataclass
class Selection:
    """What is read, in reading order, and what is not."""

    taken: list[Input] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def incomplete(self) -> list[str]:
        """Sets of numbered files that are not read whole: `web-*-of-01024.jsonl: 1 of 1,024`."""
        return incomplete_sets(Path(one.location) for one in self.taken)


def file_input(path: Path, kind: str, compression: str | None) -> Input:
    """A file of a format as an input."""
    return Input(kind, str(path), compression, bytes=path.stat().st_size)


def groups(files: Iterable[Input]) -> str:
    """`2 jsonl (a.jsonl, b.jsonl) and 1 text (c.txt)`."""
    by_format: dict[str, list[str]] = defaultdict(list)
    for one in files:
        by_format[one.format].append(Path(one.location).name)
    words = [f"{len(names)} {kind} ({some(names)})" for kind, names in sorted(by_format.items())]
    return f"formats are mixed: {' and '.join(words)}"


def some(names: Iterable[str | PurePosixPath]) -> str:
    """The first of some names."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")

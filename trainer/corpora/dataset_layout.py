"""The layout of a dataset repository: configurations of its card, splits by its files' names.

The rules are those of `datasets` (`datasets/data_files.py`), with one difference: where they would
drop files or take one file into two splits, nothing is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

ALL = "all"
"""The split that is every split."""

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _KEYWORDS.items() for word in words}
_WORD = re.compile(rf"(?<![^-._ 0-9])({'|'.join(_SPLIT_OF)})(?![^-._ 0-9])", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)(\d{4,})-of-(\d{4,})(?!\d)(.*)")
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]+")


class Configuration(NamedTuple):
    """A configuration of a dataset card: patterns of its files by split."""

    name: str
    patterns: Mapping[str, Sequence[str]]


def split_name(asked: str) -> str:
    """A split as this names it: `dev` and `val` are `validation`."""
    return _SPLIT_OF.get(asked, asked)


def splits_by_name(paths: Iterable[PurePosixPath]) -> dict[PurePosixPath, str | None]:
    """The split that each file's place and name tell; None where they tell none.

    `data/NAME-00000-of-00005.parquet` is of the split NAME; else folders tell it, then file names
    (`train`, `valid`, `dev`, `test`, …, as words). A name with words of two splits tells both, as
    `test or train`, which is no split that is taken unasked.
    """
    paths = list(paths)
    shards = {path: _SHARD.fullmatch(path.as_posix()) for path in paths}
    named = {match[1] for match in shards.values() if match}
    if any(_WORD.search(name) for name in named) and all(
        shards[path] for path in paths if path.parts[0] == "data"
    ):
        return {path: match[1] if match else _by_words(path) for path, match in shards.items()}
    return {path: _by_words(path) for path in paths}


def _by_words(path: PurePosixPath) -> str | None:
    for part in (*path.parent.parts, path.name):
        found = {_SPLIT_OF[word.lower()] for word in _WORD.findall(part)}
        if found:
            return " or ".join(sorted(found))
    return None


def incomplete_sets(paths: Iterable[Path]) -> list[str]:
    """Files called `NAME-00000-of-00005` of which some are missing: `NAME-*-of-00005: 1 of 5`."""
    sets: dict[tuple[Path, str, str, str], set[str]] = {}
    for path in paths:
        if match := _NUMBERED.fullmatch(path.name):
            begin, number, count, end = match.groups()
            sets.setdefault((path.parent, begin, count, end), set()).add(number)
    return [
        f"{folder / begin}*-of-{count}{end}: {len(numbers):,} of {int(count):,}"
        for (folder, begin, count, end), numbers in sets.items()
        if len(numbers) < int(count)
    ]


def configuration(folder: Path, asked: str | None) -> Configuration | None:
    """The configuration to read, as the dataset card (`README.md`) of a folder has it.

    Args:
        asked: its name; None: the default one.

    Returns:
        None where the card names no files.

    Raises:
        ValueError: no such configuration, several and none named, or a damaged one.
    """
    known = _configurations(folder / "README.md")
    if not known:
        return None
    names = ", ".join(known)
    if asked is None:
        defaults = [name for name, entry in known.items() if entry.get("default")]
        if len(known) > 1 and "default" not in known and not defaults:
            raise ValueError(f"{folder}: several configurations ({names}); name one by --config")
        asked = (defaults or [name for name in known if name == "default"] or list(known))[0]
    if asked not in known:
        raise ValueError(f"{folder}: no configuration {asked!r} (there are: {names})")
    entry = known[asked]
    try:
        patterns = _patterns(entry.get("data_files"))
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{folder / 'README.md'}: configs: data_files of {asked!r} are no patterns"
        ) from error
    under = str(entry.get("data_dir") or "").strip("/")
    if not patterns:
        patterns = {"train": ["**"]} if under else {}
    if under:
        patterns = {name: [f"{under}/{one}" for one in some] for name, some in patterns.items()}
    return Configuration(asked, patterns) if patterns else None


def _configurations(card: Path) -> dict[str, Mapping[str, Any]]:
    """`configs` of a card's front matter that name files, by their names."""
    import yaml

    try:
        text = card.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return {}
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        front = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{card}: its front matter is no YAML") from error
    entries = front.get("configs") if isinstance(front, dict) else None
    if not isinstance(entries, list):
        return {}
    return {
        str(entry.get("config_name", "default")): entry
        for entry in entries
        if isinstance(entry, dict) and (entry.get("data_files") or entry.get("data_dir"))
    }


def _patterns(files: Any) -> dict[str, list[str]]:
    """Patterns by split; those without a split are `train`, as `datasets` has it."""
    if files is None:
        return {}
    if isinstance(files, str):
        return {"train": [files]}
    if isinstance(files, Mapping):
        return {str(split): _listed(some) for split, some in files.items()}
    if all(isinstance(one, str) for one in files):
        return {"train": list(files)}
    return {str(one["split"]): _listed(one["path"]) for one in files}


def _listed(some: Any) -> list[str]:
    return [some] if isinstance(some, str) else [str(one) for one in some]


def splits_by_card(folder: Path, chosen: Configuration) -> dict[PurePosixPath, str]:
    """The split of each file that a configuration's patterns match."""
    found: dict[PurePosixPath, str] = {}
    for split, patterns in chosen.patterns.items():
        for pattern in patterns:
            if "://" in pattern or pattern.startswith("/"):
                continue  # not of this folder
            # pathlib's `**` stands alone, and matches folders
            parts = [
                f"**/{part.replace('**', '*')}" if "**" in part and part != "**" else part
                for part in pattern.removeprefix("./").split("/")
            ]
            whole = "/".join([*parts, "*"] if parts[-1] in ("**", "") else parts)
            for path in folder.glob(whole.replace("//", "/")):
                if path.is_file():
                    found.setdefault(PurePosixPath(path.relative_to(folder).as_posix()), split)
    return found

"""Local files of items: JSON lines, JSON, parquet, and folders that `datasets` reads or writes.

A folder is read without `datasets`' own loader, which would copy it to a cache and guess splits
differently from one release to the next.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mixloop.common.errors import one_line
from mixloop.common.files import read_whole

from .rows import ItemsError, RawRow

Splits = dict[str, Callable[[], list[RawRow]]]
"""By name (test, validation, dev, train, any other a README names; "" where nothing names it)."""

SCORED_SPLITS = ("test", "", "validation")
"""What is scored, the first that is there."""
POOL_SPLITS = {"mmlu": "dev", "gsm8k": "train"}
"""The split that few-shot examples come from."""

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPLIT = re.compile(r"(?:^|[^a-z])(test|validation|valid|val|dev|train)(?=$|[^a-z])")
_CANONICAL = {"valid": "validation", "val": "validation"}


def read_splits(path: Path, configurations: Sequence[str] = ()) -> Splits:
    """The splits of a file (one, unnamed) or folder; each is read when it is called.

    Args:
        path: A file, or a folder of them.
        configurations: Those wanted of a folder that has several.

    Raises:
        ItemsError: now or at the call; names the file and what is wrong with it.
    """
    if path.is_file():
        return {"": partial(read_file, path)}
    if not path.is_dir():
        raise ItemsError(f"{path}: no such file or folder")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved(path)
    files = _from_readme(path, configurations) or _by_name(path, configurations)
    if not files:
        raise ItemsError(
            f"{path}: no items here; put test.jsonl or test.parquet in it, or name a file"
        )
    return {split: partial(_read_all, paths) for split, paths in files.items()}


def scored_split(path: Path, splits: Splits, names: Sequence[str]) -> list[RawRow]:
    """The rows of the first of the named splits that is there.

    Raises:
        ItemsError: none of them is; names those that are.
    """
    for name in names:
        if name in splits:
            return splits[name]()
    there = ", ".join(sorted(splits))
    raise ItemsError(f"{path}: no test split (there is: {there}); name the file to be scored")


def read_file(path: Path) -> list[RawRow]:
    """The rows of one file, by its suffix.

    Raises:
        ItemsError: names the file and what is wrong with it.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".parquet": _read_parquet, ".json": _read_json}
    try:
        return readers.get(kind, _read_lines)(path)
    # pyarrow's errors are OSErrors and ValueErrors too
    except (OSError, EOFError, ValueError) as error:
        raise ItemsError(
            f"{path}: can't be read as {_KINDS.get(kind, 'JSON lines')}: {one_line(error)}"
        ) from error


_KINDS = {".parquet": "parquet", ".json": "JSON"}


def _read_all(paths: Sequence[Path]) -> list[RawRow]:
    return [row for path in paths for row in read_file(path)]


def _numbered(where: str, rows: Iterable[Any]) -> list[RawRow]:
    return [RawRow(f"{where} {number}", row) for number, row in enumerate(rows, start=1)]


def _text(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        return file.read()


def _read_lines(path: Path) -> list[RawRow]:
    rows = []
    # not splitlines: a text may hold a line separator that JSON doesn't escape
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(RawRow(f"{path}: row {number}", json.loads(line)))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
    return rows


def _read_json(path: Path) -> list[RawRow]:
    try:
        content = json.loads(_text(path))
    except ValueError:
        # many a file of JSON lines is called .json
        return _read_lines(path)
    return _numbered(f"{path}: row", content if isinstance(content, list) else [content])


def _read_parquet(path: Path) -> list[RawRow]:
    import pyarrow.parquet

    return _numbered(f"{path}: row", pyarrow.parquet.read_table(path).to_pylist())


def _saved(path: Path) -> Splits:
    """A folder that `save_to_disk` wrote: of one dataset (unnamed) or of several splits."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    # whatever a damaged folder makes of pyarrow
    except Exception as error:
        raise ItemsError(f"{path}: can't be read as a saved dataset: {one_line(error)}") from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    splits: Splits = {}
    for split, rows in parts.items():
        where = f"{path}: {split} row" if split else f"{path}: row"
        splits[_canonical(split)] = partial(_numbered, where, rows)
    return splits


def _canonical(split: str) -> str:
    return _CANONICAL.get(split, split)


def _by_name(path: Path, configurations: Sequence[str]) -> dict[str, list[Path]]:
    """Files whose names say their split, here, in `data/` and in the configurations' folders."""
    splits: dict[str, list[Path]] = {}
    for folder in (path, path / "data", *(path / name for name in configurations)):
        for file in sorted(folder.glob("*")):
            if file.name.removesuffix(".gz").endswith(_SUFFIXES) and file.is_file():
                splits.setdefault(_split_of(file), []).append(file)
    # `test.jsonl` is the split itself; `test_socratic.jsonl` beside it is another set
    return {
        split: [file for file in files if file.name.split(".")[0].lower() == split] or files
        for split, files in splits.items()
    }


def _split_of(file: Path) -> str:
    match = _SPLIT.search(file.name.split(".")[0].lower())
    return _canonical(match[1]) if match else ""


def _from_readme(path: Path, configurations: Sequence[str]) -> dict[str, list[Path]]:
    """What the front matter of a `datasets` folder's README names; nothing without one."""
    splits: dict[str, list[Path]] = {}
    for configuration in _wanted(_front_matter(path / "README.md"), configurations):
        for split, patterns in _data_files(configuration.get("data_files")):
            for pattern in patterns:
                for file in sorted(path.glob(pattern)):
                    splits.setdefault(split or _split_of(file), []).append(file)
    return splits


def _front_matter(readme: Path) -> list[Mapping[str, Any]]:
    try:
        parts = read_whole(readme, follow=True).decode().split("---\n", 2)
        content = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    return [config for config in configs or [] if isinstance(config, dict)]


def _wanted(
    configs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """The configurations asked for, else the default one, else all there are."""
    asked = [config for config in configs if config.get("config_name") in names]
    default = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    return asked or default or configs


def _data_files(value: Any) -> Iterator[tuple[str, list[str]]]:
    """(split or "", patterns) of every form `data_files` may have."""
    if isinstance(value, dict):
        value = [{"split": split, "path": paths} for split, paths in value.items()]
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            paths = entry.get("path") or []
            split = _canonical(str(entry.get("split", "")))
            yield split, [paths] if isinstance(paths, str) else list(paths)
        elif isinstance(entry, str):
            yield "", [entry]

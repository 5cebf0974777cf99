"""Local files of items: JSON lines, JSON, parquet, and folders that `datasets` reads or writes.

A folder is read without `datasets`' own loader, which would copy it to a cache and guess splits
differently from one release to the next.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from .rows import Found, ItemsError

# by name: test, validation, dev, train, any other a README names; "" where nothing names it
Splits = dict[str, Callable[[], list[Found]]]

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPLIT = re.compile(r"(?:^|[^a-z])(test|validation|valid|val|dev|train)(?=$|[^a-z])")
_SAME = {"valid": "validation", "val": "validation"}


def read_splits(path: Path, configurations: Sequence[str] = ()) -> Splits:
    """The splits of a file (one, unnamed) or folder; each is read when it is called.

    `configurations` are those wanted of a folder that has several. Raises ItemsError, now or at
    the call, naming the file and what is wrong with it.
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
    return {split: partial(_read_all, own) for split, own in files.items()}


def read_file(path: Path) -> list[Found]:
    """The rows of one file, by its suffix. Raises ItemsError."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".parquet": _read_parquet, ".json": _read_json}
    try:
        return readers.get(kind, _read_lines)(path)
    # pyarrow's errors are OSErrors and ValueErrors too
    except (OSError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ItemsError(
            f"{path}: can't be read as {_KINDS.get(kind, 'JSON lines')}: {reason}"
        ) from error


_KINDS = {".parquet": "parquet", ".json": "JSON"}


def _read_all(paths: Sequence[Path]) -> list[Found]:
    return [found for path in paths for found in read_file(path)]


def _text(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        return file.read()


def _read_lines(path: Path) -> list[Found]:
    return list(_lines(path, _text(path)))


def _lines(path: Path, text: str) -> Iterator[Found]:
    # not splitlines: a text may hold a line separator that JSON doesn't escape
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield Found(f"{path}: row {number}", json.loads(line))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error


def _read_json(path: Path) -> list[Found]:
    text = _text(path)
    try:
        content = json.loads(text)
    except ValueError:
        # many a file of JSON lines is called .json
        return list(_lines(path, text))
    rows = content if isinstance(content, list) else [content]
    return [Found(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]


def _read_parquet(path: Path) -> list[Found]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [Found(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]


def _saved(path: Path) -> Splits:
    """A folder that `save_to_disk` wrote: of one dataset (unnamed) or of several splits."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    # whatever a damaged folder makes of pyarrow
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ItemsError(f"{path}: can't be read as a saved dataset: {reason}") from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    return {_canonical(name): partial(_saved_rows, path, name, one) for name, one in parts.items()}


def _saved_rows(path: Path, split: str, dataset: Any) -> list[Found]:
    where = f"{path}: {split} row" if split else f"{path}: row"
    return [Found(f"{where} {number}", row) for number, row in enumerate(dataset, start=1)]


def _canonical(name: str) -> str:
    return _SAME.get(name, name)


def _by_name(path: Path, configurations: Sequence[str]) -> dict[str, list[Path]]:
    """Files whose names say their split, here, in `data/` and in the configurations' folders."""
    found: dict[str, list[Path]] = {}
    for folder in (path, path / "data", *(path / name for name in configurations)):
        for file in sorted(folder.glob("*")):
            if file.name.removesuffix(".gz").endswith(_SUFFIXES) and file.is_file():
                found.setdefault(_split_of(file), []).append(file)
    # `test.jsonl` is the split itself; `test_socratic.jsonl` beside it is another set
    exact = {
        split: [file for file in files if file.name.split(".")[0].lower() == split]
        for split, files in found.items()
    }
    return {split: exact[split] or files for split, files in found.items()}


def _split_of(file: Path) -> str:
    named = _SPLIT.search(file.name.split(".")[0].lower())
    return _canonical(named[1]) if named else ""


def _from_readme(path: Path, configurations: Sequence[str]) -> dict[str, list[Path]]:
    """What the front matter of a `datasets` folder's README names; nothing without one."""
    found: dict[str, list[Path]] = {}
    for configuration in _wanted(_front_matter(path / "README.md"), configurations):
        for split, patterns in _data_files(configuration.get("data_files")):
            for pattern in patterns:
                for file in sorted(path.glob(pattern)):
                    found.setdefault(split or _split_of(file), []).append(file)
    return found


def _front_matter(readme: Path) -> list[Mapping[str, Any]]:
    try:
        parts = readme.read_text(encoding="utf-8").split("---\n", 2)
        content = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (OSError, ValueError, yaml.YAMLError):
        return []
    named = content.get("configs") if isinstance(content, dict) else None
    return [one for one in named or [] if isinstance(one, dict)]


def _wanted(
    found: Sequence[Mapping[str, Any]], configurations: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """The configurations asked for, else the default one, else all there are."""
    asked = [one for one in found if one.get("config_name") in configurations]
    default = [one for one in found if one.get("default") or one.get("config_name") == "default"]
    return asked or default or found


def _data_files(value: Any) -> Iterator[tuple[str, list[str]]]:
    """(split or "", patterns) of every form `data_files` may have."""
    if isinstance(value, dict):
        value = [{"split": split, "path": paths} for split, paths in value.items()]
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            paths = one.get("path") or []
            split = _canonical(str(one.get("split", "")))
            yield split, [paths] if isinstance(paths, str) else list(paths)
        elif isinstance(one, str):
            yield "", [one]

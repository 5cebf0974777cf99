"""Local files of items: JSON lines, JSON, parquet, and folders that `datasets` reads or writes.

A folder is read without `datasets`' own loader, which would copy it to a cache and guess splits
differently from one release to the next. Whoever made it is not trusted: nothing is read that is
no regular file or lies elsewhere, and none of it beyond a bound.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from mixloop.common.errors import one_line, shown
from mixloop.common.files import read_regular, read_whole
from mixloop.common.yaml import parse_yaml

from .rows import LONGEST, ItemsError, RawRow

Splits = dict[str, Callable[[], list[RawRow]]]
"""By name (test, validation, dev, train, any other a README names; "" where nothing names it)."""

SCORED_SPLITS = ("test", "", "validation")
"""What is scored, the first that is there."""
POOL_SPLITS = {"mmlu": "dev", "gsm8k": "train"}
"""The split that few-shot examples come from."""

MOST_BYTES = 2**30
"""Of a file's content, decompressed."""
MOST_ROWS = 10**6
_BATCH_ROWS = 32  # of a parquet file at a time: a few bytes of it may unfold to gigabytes

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
        if not path.is_file():  # a README may name what can be waited for without end
            raise ValueError("no regular file")
        return readers.get(kind, _read_lines)(path)
    except RecursionError as error:
        raise ItemsError(f"{path}: can't be read: its values are nested too deeply") from error
    # whatever a damaged file makes of its parser
    except Exception as error:
        raise ItemsError(
            f"{path}: can't be read as {_KINDS.get(kind, 'JSON lines')}: {one_line(error)}"
        ) from error


_KINDS = {".parquet": "parquet", ".json": "JSON"}


def _read_all(paths: Sequence[Path]) -> list[RawRow]:
    rows: list[RawRow] = []
    for path in paths:
        rows += read_file(path)
        if len(rows) > MOST_ROWS:
            raise ItemsError(f"{path.parent}: more than {MOST_ROWS:,} rows; name fewer files")
    return rows


def _numbered(where: str, rows: Iterable[Any]) -> list[RawRow]:
    return [RawRow(f"{where} {number}", row) for number, row in enumerate(rows, start=1)]


def _content(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _too_much(what: str, most: int) -> ValueError:
    return ValueError(f"more than {most:,} {what}; no benchmark needs so many: give a part of it")


def _read_lines(path: Path) -> list[RawRow]:
    rows: list[RawRow] = []
    number = held = 0
    with _content(path) as file:
        # not by what str calls a line: a text may hold a separator that JSON doesn't escape
        while line := file.readline(_LONGEST_LINE + 1):
            number, held = number + 1, held + len(line)
            try:
                if len(line) > _LONGEST_LINE:
                    raise _too_much("bytes in a line", _LONGEST_LINE)
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    rows.append(RawRow(f"{path}: row {number}", json.loads(text)))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
            if held > MOST_BYTES:
                raise _too_much("bytes", MOST_BYTES)
            if len(rows) > MOST_ROWS:
                raise _too_much("rows", MOST_ROWS)
    return rows


_LONGEST_LINE = 4 * LONGEST  # JSON may write a character in six bytes


def _read_json(path: Path) -> list[RawRow]:
    with _content(path) as file:
        data = file.read(MOST_BYTES // 4 + 1)  # its values take many times as much
    if len(data) > MOST_BYTES // 4:
        raise _too_much("bytes of JSON", MOST_BYTES // 4)
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        # many a file of JSON lines is called .json
        return _read_lines(path)
    return _numbered(f"{path}: row", content if isinstance(content, list) else [content])


def _read_parquet(path: Path) -> list[RawRow]:
    import pyarrow.parquet

    rows: list[Any] = []
    held = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        if file.metadata.num_rows > MOST_ROWS:
            raise _too_much("rows", MOST_ROWS)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            held += batch.nbytes
            if batch.nbytes > _BATCH_ROWS * LONGEST or held > MOST_BYTES:
                raise _too_much("bytes, unpacked", min(MOST_BYTES, _BATCH_ROWS * LONGEST))
            rows += batch.to_pylist()
    return _numbered(f"{path}: row", rows)


def _saved(path: Path) -> Splits:
    """A folder that `save_to_disk` wrote: of one dataset (unnamed) or of several splits."""
    import datasets

    try:
        _must_stay_within(path)
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


def _must_stay_within(path: Path) -> None:
    """That the files which a saved dataset names lie in its folder."""
    named = _small_json(path / "dataset_dict.json").get("splits", [])
    for folder in (path, *(path / str(split) for split in named if isinstance(split, str))):
        files = _small_json(folder / "state.json").get("_data_files", [])
        named = [*named, *(file["filename"] for file in files)]
    for name in named:
        if "/" in str(name) or str(name).startswith("."):
            raise ValueError(f"it names {shown(name)}, which is none of its own files")


def _small_json(path: Path) -> Any:
    return json.loads(read_regular(path).data) if path.is_file() else {}


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
                if not isinstance(pattern, str) or not _within(pattern):
                    raise ItemsError(
                        f"{path / 'README.md'}: configs: data_files names {shown(pattern)}; give "
                        "the name of a file in this folder"
                    )
                for file in sorted(path.glob(pattern)):
                    splits.setdefault(split or _split_of(file), []).append(file)
    return splits


def _within(pattern: str) -> bool:
    """Whether it names files below a folder (which may be links: the hub's cache is made so)."""
    parts = PurePosixPath(pattern).parts
    return bool(parts) and not pattern.startswith("/") and ".." not in parts


def _front_matter(readme: Path) -> list[Mapping[str, Any]]:
    if not readme.is_file():  # a FIFO would be waited for
        return []
    try:
        parts = read_whole(readme, follow=True).decode("utf-8", "replace").split("---\n", 2)
        content = parse_yaml(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (OSError, ValueError):
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    configs = configs if isinstance(configs, list) else []
    return [config for config in configs if isinstance(config, dict)]


def _wanted(
    configs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """The configurations asked for, else the default one, else all there are."""
    asked = [config for config in configs if config.get("config_name") in names]
    default = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    return asked or default or configs


def _data_files(value: Any) -> Iterator[tuple[str, list[Any]]]:
    """(split or "", patterns) of every form `data_files` may have."""
    if isinstance(value, dict):
        value = [{"split": split, "path": paths} for split, paths in value.items()]
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            paths = entry.get("path") or []
            split = _canonical(str(entry.get("split", "")))
            yield split, list(paths) if isinstance(paths, list) else [paths]
        elif entry is not None:
            yield "", [entry]

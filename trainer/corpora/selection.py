"""Which files of the inputs are read: what is taken, what is left, and why.

Explicit files are taken as they are. Of a folder its documents are: not what is hidden, not cards
and other files about the data, and one split of one format. What is in doubt is refused, in one
line that says what to add.
"""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from .compressed import bare_name
from .dataset_layout import ALL, configuration, split_name, splits_by_card, splits_by_name
from .foreign import refuse_foreign
from .recognise import FORMATS, IN_DOUBT, RECORDS, TEXT_SUFFIXES, named_format, recognise

_SAVED = ("state.json", "dataset_info.json")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_CARDS = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|contributing|authors|datasheet"
    r"|code_of_conduct|security)(?![a-z])[^/]*",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"(dataset_infos?|dataset_dict|state|config|stats|metadata|manifest|index|croissant)\.json"
    r"|requirements[\w-]*\.txt|robots\.txt|(md5|sha\d+)(sums?)?(\.txt)?|checksums?(\.\w+)?|_.*",
    re.IGNORECASE,
)
_OTHER_KINDS = re.compile(
    r".*\.(md5|sha1|sha256|sha512|crc|lock|ya?ml|toml|cfg|ini|log|py|ipynb|sh|tmp|incomplete)",
    re.IGNORECASE,
)


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
    """What is read: a file, a dataset saved to disk (`saved`), or a hub dataset (`hub`)."""

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


def select(inputs: Iterable[str], choice: Choice = Choice()) -> Selection:
    """The inputs resolved: as given, the files of a folder or glob sorted by path.

    Args:
        inputs: files, folders, globs, datasets saved by `save_to_disk`, hub datasets (`org/name`,
            `hub:name`).

    Raises:
        ValueError: naming the input that is missing, matches nothing, or is in doubt.
    """
    if choice.format is not None and choice.format not in FORMATS:
        raise ValueError(f"format {choice.format!r}: none of {', '.join(FORMATS)}")
    chosen = Selection()
    files: list[tuple[Path, PurePosixPath]] = []
    for text in inputs:
        path = Path(text).expanduser()
        if text.startswith("hub:"):
            chosen.taken.append(Input("hub", text.removeprefix("hub:"), split=choice.split))
        elif path.is_dir():
            _add_folder(path, choice, chosen)
        elif path.is_file():
            files.append((path, PurePosixPath(path.name)))
            _add_file(path, choice, chosen)
        elif glob.has_magic(text):
            files += _add_glob(text, path, choice, chosen)
        elif _HUB.fullmatch(text) and named_format(path) is None:
            chosen.taken.append(Input("hub", text, split=choice.split))
        else:
            raise ValueError(f"{text}: no such file or folder")
    if not chosen.taken and not chosen.left:
        raise ValueError("no input given")
    _check_named_files(dict(files), choice, chosen)
    return chosen


def _input(path: Path, format: str, compression: str | None, split: str | None = None) -> Input:  # noqa: A002
    return Input(format, str(path), compression, split, path.stat().st_size)


# --- files that are named ---------------------------------------------------------------------


def _add_file(path: Path, choice: Choice, chosen: Selection) -> None:
    found = recognise(path, choice.format)
    if found.format is not None:
        chosen.taken.append(_input(path, found.format, found.compression))
    elif found.why == "empty":
        chosen.left.append(Left(str(path), found.why))
    else:
        raise ValueError(f"{path}: {found.why}")


def _add_glob(
    text: str, path: Path, choice: Choice, chosen: Selection
) -> list[tuple[Path, PurePosixPath]]:
    root = Path(path.anchor)
    pattern = str(path.relative_to(root))
    matched = [file for file in sorted(root.glob(pattern)) if file.is_file()]
    if not matched:
        raise ValueError(f"{text}: the pattern matches no file")
    base = Path(os.path.commonpath([str(file.parent) for file in matched]))
    taken = []
    for file in matched:
        inside = PurePosixPath(file.relative_to(base).as_posix())
        why = _beside_the_point(inside, [pattern])
        if why is not None:
            chosen.left.append(Left(str(file), why))
            continue
        _add_file(file, choice, chosen)
        taken.append((file, inside))
    return taken


def _check_named_files(
    files: Mapping[Path, PurePosixPath], choice: Choice, chosen: Selection
) -> None:
    """Refuse or leave out what a shell's pattern may have brought in with the rest."""
    taken = {Path(one.location): one for one in chosen.taken if Path(one.location) in files}
    if not taken or (len(taken) == 1 and choice.split is None):
        return
    formats = {one.format for one in taken.values()}
    for path in taken:
        if len(formats) > 1 and _CARDS.fullmatch(path.name):
            raise ValueError(
                f"{path}: about the data, by its name, and text among {_listed(formats)}; leave "
                "it out, or prepare it alone and --append"
            )
    if "text" in formats and len(formats) > 1 and choice.format is None:
        raise ValueError(f"{_groups(taken.values())}: give --format, or prepare one, then --append")
    marks = splits_by_name(files[path] for path in taken)
    splits = {marks[files[path]] for path in taken}
    if choice.split is None and splits & {"train", None} and splits - {"train", None}:
        other = next(path for path in taken if marks[files[path]] not in ("train", None))
        raise ValueError(
            f"{other}: of the split {marks[files[other]]}, by its name, among others; give "
            f"--split train, or --split {ALL}"
        )
    if choice.split not in (None, ALL) and splits != {None}:
        wanted = split_name(str(choice.split))
        for path, one in taken.items():
            split = marks[files[path]]
            if split != wanted:
                chosen.taken.remove(one)
                chosen.left.append(Left(one.location, f"split {split or 'not named'}"))
        if not set(chosen.taken) & set(taken.values()):
            raise ValueError(f"{next(iter(taken))}: not of the split {choice.split}, by its name")


# --- folders ----------------------------------------------------------------------------------


def _add_folder(folder: Path, choice: Choice, chosen: Selection) -> None:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        chosen.taken.append(Input("saved", str(folder), split=choice.split))
        return
    refuse_foreign(folder)
    card = configuration(folder, choice.config)
    if card is None and choice.config is not None:
        if not (folder / choice.config).is_dir():
            raise ValueError(
                f"{folder}: no configuration {choice.config!r}: its README.md names none, and it "
                "has no such subfolder"
            )
        _add_folder(folder / choice.config, _without_config(choice), chosen)
        return
    left: list[Left] = []
    found: dict[PurePosixPath, Input] = {}
    for inside in _walk(folder, left):
        one = _look(folder, inside, choice, left)
        if one is not None:
            found[inside] = one
    if card is None:
        marks = splits_by_name(found)
    else:
        by_card = splits_by_card(folder, card)
        for inside in [path for path in found if path not in by_card]:
            why = f"not of the configuration {card.name!r}"
            left.append(Left(found.pop(inside).location, why))
        marks = {path: by_card[path] for path in found}
    taken = _one_split(folder, found, marks, choice, left)
    if len({one.format for one in taken}) > 1:
        raise ValueError(
            f"{folder}: {_groups(taken)}: say which by --format or --include, or prepare one, "
            "then --append the other"
        )
    if not taken:
        raise ValueError(f"{folder}: no file of documents in this folder{_what_is_left(left)}")
    chosen.taken += taken
    chosen.left += left


def _without_config(choice: Choice) -> Choice:
    return Choice(choice.split, None, choice.format, choice.include)


def _walk(folder: Path, left: list[Left]) -> Iterator[PurePosixPath]:
    """The files of a folder by path; what is hidden is left, a hidden folder in one entry."""
    found = []
    for where, folders, files in os.walk(folder):
        base = Path(where)
        for name in sorted(folders):
            if name.startswith((".", "__")):
                left.append(Left(str(base / name), "hidden"))
                folders.remove(name)
            elif all((base / name / one).is_file() for one in _SAVED):
                raise ValueError(
                    f"{base / name}: a dataset of `save_to_disk`; name it as an input of its own"
                )
        found += [base / name for name in files]
    for path in sorted(found):
        if path.is_file():
            yield PurePosixPath(path.relative_to(folder).as_posix())


def _look(folder: Path, inside: PurePosixPath, choice: Choice, left: list[Left]) -> Input | None:
    """A file of a folder as an input; None, and an entry in `left`, if it isn't one."""
    path = folder / inside
    if choice.include and not any(
        fnmatch(inside.as_posix(), pattern) or fnmatch(inside.name, pattern)
        for pattern in choice.include
    ):
        left.append(Left(str(path), "not included"))
        return None
    why = _beside_the_point(inside, choice.include)
    if why is None:
        found = recognise(path)
        kind, why = found.format, found.why
        if choice.format is not None and kind != choice.format:
            if kind is None and why.endswith(IN_DOUBT):
                return _input(path, choice.format, found.compression)
            why = f"{kind or why}, not {choice.format}"
        elif kind is None and why != "empty" and (named_format(path) or "unreadable" in why):
            # data by its name: nobody would look for it among what is left
            raise ValueError(f"{path}: {why}")
        elif kind == "text" and not (
            choice.include or choice.format or bare_name(path).endswith(TEXT_SUFFIXES)
        ):
            why = f"text, but not by its name ({', '.join(TEXT_SUFFIXES)}); --include takes it"
        elif kind is not None:
            return _input(path, kind, found.compression)
    left.append(Left(str(path), why))
    return None


def _beside_the_point(inside: PurePosixPath, asked: Iterable[str]) -> str | None:
    """Why a file of a folder is no document, by its name alone; None where it may be one.

    Args:
        asked: patterns that the user gave; one that begins like the name asks for it.
    """
    name = inside.name
    for pattern in asked:
        begin = re.split(r"[*?\[]", PurePosixPath(pattern).name)[0]
        if begin and name.startswith(begin):
            return None
    if any(part.startswith((".", "__")) for part in inside.parts):
        return "hidden"
    if _CARDS.fullmatch(name) and Path(bare_name(Path(name))).suffix in (
        "",
        ".html",
        *TEXT_SUFFIXES,
    ):
        return "about the data"
    if _ABOUT.fullmatch(name):
        return "about the data"
    # a pattern such as *.py asks for its kind
    if _OTHER_KINDS.fullmatch(name) and not any(PurePosixPath(one).suffix for one in asked):
        return "about the data"
    return None


def _one_split(
    folder: Path,
    found: Mapping[PurePosixPath, Input],
    marks: Mapping[PurePosixPath, str | None],
    choice: Choice,
    left: list[Left],
) -> list[Input]:
    """The files of the split that is asked for; the others go to `left`."""
    splits = {mark for mark in marks.values() if mark is not None}
    unmarked = [path for path in found if marks[path] is None]
    wanted: str | None = choice.split if choice.split in splits else split_name(choice.split or "")
    wanted = wanted or "train"
    if wanted == ALL or (not splits and wanted == "train"):
        return list(found.values())
    if wanted in splits:
        in_doubt = wanted == "train" and bool(unmarked)
    elif wanted == "train" and unmarked:
        # a page that is called `on testing.txt` need be of no test split
        in_doubt = any(found[path].format == "text" for path in unmarked)
        wanted = None
    else:
        raise ValueError(
            f"{folder}: no split {wanted!r} (there are: {', '.join(sorted(splits)) or 'none'}); "
            f"name one by --split, or --split {ALL}"
        )
    if in_doubt and choice.split is None:
        marked = [path for path in found if marks[path] is not None]
        raise ValueError(
            f"{folder}: {_some(marked)} of the split {_some(sorted(splits))} by name, "
            f"{_some(unmarked)} of none; give --split train, --split {ALL}, or --include"
        )
    taken = []
    for path, one in found.items():
        if marks[path] == wanted:
            taken.append(Input(one.format, one.location, one.compression, wanted, one.bytes))
        else:
            left.append(Left(one.location, f"split {marks[path] or 'not named'}"))
    return taken


def _groups(files: Iterable[Input]) -> str:
    """`2 jsonl (a.jsonl, b.jsonl) and 1 text (c.txt)`."""
    by_format: dict[str, list[str]] = defaultdict(list)
    for one in files:
        by_format[one.format].append(Path(one.location).name)
    words = [f"{len(names)} {kind} ({_some(names)})" for kind, names in sorted(by_format.items())]
    return f"formats are mixed: {' and '.join(words)}"


def _some(names: Iterable[str | PurePosixPath]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _listed(formats: Iterable[str]) -> str:
    return ", ".join(sorted(set(formats) & set(RECORDS))) or "others"


def _what_is_left(left: Iterable[Left]) -> str:
    why = [f"{Path(one.location).name}: {one.why}" for one in left]
    return f" ({_some(why)})" if why else ""

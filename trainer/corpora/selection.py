"""Which files of the inputs are read: what is taken, what is left, and why.

Explicit files are taken as they are. Of a folder its documents are: not what is hidden, not cards
and other files about the data, and one split of one format. What is in doubt is refused, in one
line that says what to add.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from .compressed import bare_name
from .dataset_layout import ALL, split_name, splits_by_name
from .folders import CARDS, add_folder, beside_the_point
from .inputs import Choice, Input, Left, Selection, file_input, groups
from .recognise import FORMATS, RECORDS, named_format, recognise

_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def select(inputs: Iterable[str], choice: Choice | None = None) -> Selection:
    """The inputs resolved: as given, the files of a folder or glob sorted by path.

    Args:
        inputs: files, folders, globs, datasets saved by `save_to_disk`, hub datasets (`org/name`,
            `hub:name`).

    Raises:
        ValueError: naming the input that is missing, matches nothing, or is in doubt.
    """
    choice = choice or Choice()
    if choice.format is not None and choice.format not in FORMATS:
        raise ValueError(f"format {choice.format!r}: none of {', '.join(FORMATS)}")
    chosen = Selection()
    files: list[tuple[Path, PurePosixPath]] = []
    for text in inputs:
        path = Path(text).expanduser()
        if text.startswith("hub:"):
            chosen.taken.append(Input("hub", text.removeprefix("hub:"), split=choice.split))
        elif path.is_dir():
            add_folder(path, choice, chosen)
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
    _refuse_repeats(chosen)
    _refuse_twins(chosen)
    return chosen


def _refuse_repeats(chosen: Selection) -> None:
    places = Counter(
        Path(one.location).resolve() for one in chosen.taken if one.format not in ("hub", "saved")
    )
    for place, count in places.most_common(1):
        if count > 1:
            raise ValueError(f"{place}: given {count} times; leave it out of all but one input")


def _refuse_twins(chosen: Selection) -> None:
    """Refuse a file and its compressed self: the same documents twice."""
    seen: dict[Path, str] = {}
    for one in chosen.taken:
        path = Path(one.location)
        plain = path.with_name(path.name[: len(bare_name(path))])
        other = seen.setdefault(plain, path.name)
        if other != path.name:
            raise ValueError(
                f"{path}: the same file as {other}, by its name; take one of them (--include)"
            )


# --- files that are named ---------------------------------------------------------------------


def _add_file(path: Path, choice: Choice, chosen: Selection) -> None:
    found = recognise(path, choice.format)
    if found.format is not None:
        chosen.taken.append(file_input(path, found.format, found.compression))
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
        why = beside_the_point(inside, [pattern])
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
        if len(formats) > 1 and CARDS.fullmatch(path.name):
            raise ValueError(
                f"{path}: about the data, by its name, and text among {_listed(formats)}; leave "
                "it out, or prepare it alone and --append"
            )
    if "text" in formats and len(formats) > 1 and choice.format is None:
        raise ValueError(f"{groups(taken.values())}: give --format, or prepare one, then --append")
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


def _listed(formats: Iterable[str]) -> str:
    return ", ".join(sorted(set(formats) & set(RECORDS))) or "others"

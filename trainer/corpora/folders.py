"""The documents of a folder: one split of one format, without what is only about them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from .compressed import bare_name
from .dataset_layout import ALL, configuration, split_name, splits_by_card, splits_by_name
from .foreign import refuse_foreign
from .inputs import Choice, Input, Left, Selection, file_input, groups, some
from .mosaic_shards import is_mosaic
from .recognise import IN_DOUBT, TEXT_SUFFIXES, named_format, recognise

_SAVED = ("state.json", "dataset_info.json")
CARDS = re.compile(
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
    r".*\.(md5|sha1|sha256|sha512|crc|lock|ya?ml|toml|cfg|ini|log|py|ipynb|sh|tmp|bak|orig|swp"
    r"|incomplete|part|partial|crdownload|aria2)",
    re.IGNORECASE,
)


def add_folder(folder: Path, choice: Choice, chosen: Selection) -> None:
    """Take the documents of a folder, and say what of it is left.

    Raises:
        ValueError: it holds none, or something in doubt; one line with the word that settles it.
    """
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        chosen.taken.append(Input("saved", str(folder), split=choice.split))
        return
    if _add_shards(folder, choice, chosen):
        return
    refuse_foreign(folder)
    card = configuration(folder, choice.config)
    if card is None and choice.config is not None:
        if not (folder / choice.config).is_dir():
            raise ValueError(
                f"{folder}: no configuration {choice.config!r}: its README.md names none, and it "
                "has no such subfolder"
            )
        add_folder(folder / choice.config, _without_config(choice), chosen)
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
            f"{folder}: {groups(taken)}: say which by --format or --include, or prepare one, "
            "then --append the other"
        )
    if not taken:
        raise ValueError(f"{folder}: no file of documents in this folder{_what_is_left(left)}")
    chosen.taken += taken
    chosen.left += left


def _add_shards(folder: Path, choice: Choice, chosen: Selection) -> bool:
    """Take a folder of MosaicML's shards, or of folders of them by split; False: it is none."""
    if is_mosaic(folder):
        chosen.taken.append(Input("mds", str(folder)))
        return True
    splits = sorted(part.name for part in folder.iterdir() if part.is_dir() and is_mosaic(part))
    asked = choice.split or "train"
    if splits and asked not in (*splits, ALL):
        names = ", ".join(splits)
        raise ValueError(f"{folder}: no split {asked!r} (there are: {names}); name one by --split")
    for split in splits:
        if asked in (split, ALL):
            chosen.taken.append(Input("mds", str(folder / split), split=split))
        else:
            chosen.left.append(Left(str(folder / split), f"split {split}"))
    return bool(splits)


def _without_config(choice: Choice) -> Choice:
    return Choice(choice.split, None, choice.format, choice.include)


def _walk(folder: Path, left: list[Left]) -> Iterator[PurePosixPath]:
    """The files of a folder by path; what is hidden is left, a hidden folder in one entry."""
    found: list[Path] = []
    seen = {folder.resolve()}
    for where, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        base = Path(where)
        folders.sort()  # which of two ways to a folder is taken
        for name in tuple(folders):
            place = (base / name).resolve()
            if name.startswith((".", "__")):
                left.append(Left(str(base / name), "hidden"))
                folders.remove(name)
            elif place in seen or base.resolve().is_relative_to(place):
                left.append(Left(str(base / name), "a folder that is read already (a link)"))
                folders.remove(name)
            elif all((base / name / one).is_file() for one in _SAVED):
                raise ValueError(
                    f"{base / name}: a dataset of `save_to_disk`; name it as an input of its own"
                )
            else:
                seen.add(place)
        found += [base / name for name in files]
    for path in sorted(found):
        if path.is_file() or path.is_symlink():  # a link to nothing is a file that is missing
            yield PurePosixPath(path.relative_to(folder).as_posix())


def _unreadable(error: OSError) -> None:
    raise ValueError(f"{error.filename}: unreadable: {error.strerror}")


def _look(folder: Path, inside: PurePosixPath, choice: Choice, left: list[Left]) -> Input | None:
    """A file of a folder as an input; None, and an entry in `left`, if it isn't one."""
    path = folder / inside
    if choice.include and not any(
        fnmatch(inside.as_posix(), pattern) or fnmatch(inside.name, pattern)
        for pattern in choice.include
    ):
        left.append(Left(str(path), "not included"))
        return None
    why = beside_the_point(inside, choice.include)
    if why is None:
        found = recognise(path)
        kind, why = found.format, found.why
        if choice.format is not None and kind != choice.format:
            if kind is None and why.endswith(IN_DOUBT):
                return file_input(path, choice.format, found.compression)
            why = f"{kind or why}, not {choice.format}"
        elif kind is None and why != "empty" and (named_format(path) or "unreadable" in why):
            # data by its name: nobody would look for it among what is left
            raise ValueError(f"{path}: {why}")
        elif kind == "text" and not (
            choice.include or choice.format or bare_name(path).endswith(TEXT_SUFFIXES)
        ):
            why = f"text, but not by its name ({', '.join(TEXT_SUFFIXES)}); --include takes it"
        elif kind is not None:
            return file_input(path, kind, found.compression)
    left.append(Left(str(path), why))
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
            f"{folder}: {some(marked)} of the split {some(sorted(splits))} by name, "
            f"{some(unmarked)} of none; give --split train, --split {ALL}, or --include"
        )
    taken = []
    for path, one in found.items():
        if marks[path] == wanted:
            taken.append(Input(one.format, one.location, one.compression, wanted, one.bytes))
        else:
            left.append(Left(one.location, f"split {marks[path] or 'not named'}"))
    return taken


def _what_is_left(left: Iterable[Left]) -> str:
    why = [f"{Path(one.location).name}: {one.why}" for one in left]
    return f" ({some(why)})" if why else ""


def beside_the_point(inside: PurePosixPath, asked: Iterable[str]) -> str | None:
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
    if CARDS.fullmatch(name) and Path(bare_name(Path(name))).suffix in (
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

"""The texts of `bench/real.py`: sixteen sources of very different worth and size.

All of them are made from what lies on any machine with the project's ``demo`` extra: the four
sources of `mixloop demo` (code, prose, mathematics, word problems), a small one of worked problems
whose epochs bind, and eleven that help the benchmarks little or not at all. Where the system has
other files of a kind (manual pages, Perl, C headers) they come first, else packages' own serve; a
source that comes out empty is said and left out, and fewer than fourteen are refused. A document
that shares 13 words in a row with an item, steering or judging, is dropped.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from mixloop.tools.demo.corpus import SOURCES as DEMO_SOURCES
from mixloop.tools.demo.decontamination import HeldOut

Json = dict[str, Any]
Documents = Callable[[int], Iterator[str]]

LEAST_SOURCES = 14
MIN_DOCUMENT = 200  # characters
MAX_DOCUMENT = 20_000
SITE = Path(sysconfig.get_paths()["purelib"])
SHARE = Path("/usr/share")


@dataclass(frozen=True)
class Recipe:
    """A source: bytes at most, what it is tagged with, and whether a person would have used it.

    ``tags`` name benchmarks that it serves, for policies that go by tags. ``good`` sources make
    the hand-made mixture.
    """

    megabytes: float
    tags: tuple[str, ...] = ()
    good: bool = False


RECIPES: dict[str, Recipe] = {
    "code": Recipe(3.0, ("humaneval",), good=True),
    "prose": Recipe(2.0, ("mmlu",), good=True),
    "math-docs": Recipe(2.0, ("math",), good=True),
    "word-problems": Recipe(1.5, ("gsm8k", "math"), good=True),
    "worked": Recipe(0.2, ("gsm8k",), good=True),
    "javascript": Recipe(2.0),
    "c-headers": Recipe(2.5),
    "scripts": Recipe(1.5),
    "foreign": Recipe(3.0),
    "changelogs": Recipe(2.5),
    "json": Recipe(2.0),
    "tables": Recipe(0.5),
    "records": Recipe(1.5),
    "licences": Recipe(0.7),
    "scrambled": Recipe(2.5),
    "base64": Recipe(1.5),
}
"""The declared sources; 8.7 of 28.9 MB are of use, so that the proportional start is poor."""

ENCODED = ("base64", "records", "scrambled", "tables")  # the vocabulary isn't learnt from these
HAND_MADE = {
    "code": 0.21, "prose": 0.21, "math-docs": 0.21, "word-problems": 0.30, "worked": 0.07,
}  # fmt: skip
"""What a person who knows the benchmarks and the sources would train on; written down before any
run, from the figures of the issue that asked for this bench."""


def harvest(out: Path, held_out: Iterable[str], worked: Sequence[str], seed: int) -> Json:
    """Write every source's jsonl file; returns per source documents, bytes, overlaps dropped.

    Raises:
        ValueError: fewer than ``LEAST_SOURCES`` sources could be made here.
    """
    out.mkdir(parents=True, exist_ok=True)
    index = HeldOut(held_out)
    found: Json = {}
    for name, recipe in RECIPES.items():
        documents = _documents(name, out, worked)
        written = write_source(out / f"{name}.jsonl", documents(seed), recipe.megabytes, index)
        if written["documents"]:
            found[name] = written
        else:
            (out / f"{name}.jsonl").unlink()
    if len(found) < LEAST_SOURCES:
        missing = ", ".join(sorted(set(RECIPES) - set(found)))
        raise ValueError(f"only {len(found)} sources here; nothing was found for {missing}")
    return found


def _documents(name: str, out: Path, worked: Sequence[str]) -> Documents:
    if name == "worked":
        return lambda seed: iter(worked)
    if name == "scrambled":
        return lambda seed: scrambled(_texts_of(out, ("prose", "code", "math-docs")), seed)
    return DEMO_SOURCES.get(name) or FOUND[name]


def write_source(path: Path, texts: Iterable[str], megabytes: float, index: HeldOut) -> Json:
    """Write documents until the limit: no short ones, no copies, none that overlaps an item."""
    count = size = overlapping = 0
    seen: set[bytes] = set()
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in (raw.strip().encode("utf-8", "replace").decode() for raw in texts):
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if len(text) < MIN_DOCUMENT or digest in seen:
                continue
            seen.add(digest)
            length = len(text.encode())
            if size + length > megabytes * 1e6:
                break
            if index.overlaps(text):
                overlapping += 1
                continue
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count, size = count + 1, size + length
    return {"documents": count, "bytes": size, "overlapping": overlapping}


def deal(folder: Path, out: Path, shards: int, seed: int) -> None:
    """The flat variant: the good sources' documents, shuffled and dealt into equal shards."""
    out.mkdir(parents=True, exist_ok=True)
    texts = _texts_of(folder, [name for name, recipe in RECIPES.items() if recipe.good])
    Random(seed).shuffle(texts)
    for shard in range(shards):
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts[shard::shards])
        (out / f"shard-{shard:02}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def scrambled(texts: list[str], seed: int) -> Iterator[str]:
    """Documents with their words in random order: only their counts can be learnt."""
    rng = Random(seed)
    rng.shuffle(texts)
    for text in texts:
        words = text.split()
        rng.shuffle(words)
        yield " ".join(words)[:MAX_DOCUMENT]


def head(path: Path, limit: int) -> Iterator[str]:
    """Documents from the start of a source, ``limit`` characters of them."""
    for text in _texts_of(path.parent, [path.stem]):
        yield text
        limit -= len(text)
        if limit <= 0:
            return


def _texts_of(folder: Path, names: Iterable[str]) -> list[str]:
    files = [folder / f"{name}.jsonl" for name in names]
    lines = (file.read_text("utf-8").splitlines() for file in files if file.exists())
    return [json.loads(line)["text"] for line in itertools.chain.from_iterable(lines)]


def _files(*patterns: tuple[Path, str]) -> Documents:
    """Pieces of the files that match, those of earlier patterns first, each lot shuffled."""

    def documents(seed: int) -> Iterator[str]:
        for folder, pattern in patterns:
            for path in _shuffled(folder, pattern, seed):
                yield from pieces(_read(path))

    return documents


def _shuffled(folder: Path, pattern: str, seed: int) -> list[Path]:
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    Random(seed).shuffle(paths)
    return paths


def pieces(text: str, most: int = 6) -> Iterator[str]:
    """A text in documents of at most ``MAX_DOCUMENT`` characters, ``most`` of them."""
    for at in range(0, min(len(text), most * MAX_DOCUMENT), MAX_DOCUMENT):
        yield text[at : at + MAX_DOCUMENT]


def _read(path: Path) -> str:
    """A file's text, empty where it is none; of manual pages without their comments."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            text = file.read(10 * MAX_DOCUMENT)
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    return re.sub(r'^\.\\".*$', "", text, flags=re.MULTILINE)


def _foreign(seed: int) -> Iterator[str]:
    """Manual pages in other languages, else the task files of lm-eval that aren't English."""
    folders = sorted(p for p in (SHARE / "man").glob("*") if not p.name.startswith("man"))
    paths = [path for folder in folders for path in sorted(folder.rglob("*.gz"))]
    paths += sorted((SITE / "lm_eval" / "tasks").rglob("*.yaml"))
    Random(seed).shuffle(paths)
    for path in paths:
        text = _read(path)
        if path.suffix == ".gz" or sum(map(str.isascii, text)) < 0.9 * len(text):
            yield from pieces(text)


def _base64(seed: int) -> Iterator[str]:
    for path in _shuffled(SITE, "**/*.so", seed):
        with path.open("rb") as file:
            data = file.read(200_000)
        for at in range(0, len(data), 6000):
            yield base64.b64encode(data[at : at + 6000]).decode()


FOUND: dict[str, Documents] = {
    "javascript": _files((SITE, "**/*.js")),
    "c-headers": _files((Path("/usr/include"), "**/*.h"), (SITE, "**/*.h")),
    "scripts": _files((SHARE / "perl", "**/*.p[ml]"), (SITE, "**/*.sh"), (SITE, "**/*.cmake")),
    "foreign": _foreign,
    "changelogs": _files(
        (SHARE / "doc", "*/changelog*.gz"), (SITE, "**/CHANGELOG*"), (SITE, "**/METADATA")
    ),
    "json": _files((SITE, "**/*.json")),
    "tables": _files((SITE, "**/*.csv")),
    "records": _files((SITE, "*.dist-info/RECORD")),
    "licences": _files(
        (SITE, "**/LICENSE*"), (SITE, "**/COPYING*"), (SHARE / "doc", "*/copyright")
    ),
    "base64": _base64,
}
"""What is found on the machine, by source: documents given a seed."""

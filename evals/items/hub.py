"""Items from the Hugging Face hub, and whether it can be reached at all."""

from __future__ import annotations

import os
import queue
import threading

from .rows import Found, ItemsError

HUB_SECONDS = 4.0

# dataset, configurations, splits: the items', then the few-shot pool's
HUB: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "mmlu": ("cais/mmlu", ("all",), ("test", "dev")),
    "gsm8k": ("openai/gsm8k", ("main",), ("test", "train[:64]")),
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
        ("test",),
    ),
    "humaneval": ("openai/openai_humaneval", ("openai_humaneval",), ("test",)),
}


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


def from_hub(benchmark: str) -> tuple[list[Found], list[Found]]:
    """The hub's test rows of one of the four benchmarks, and its few-shot pool.

    Raises ItemsError.
    """
    name, configurations, splits = HUB[benchmark]
    try:
        parts = [
            [row for configuration in configurations for row in _load(name, configuration, split)]
            for split in splits
        ]
    # the hub client raises whatever its transport raised; all of it means "not from there"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ItemsError(f"{benchmark}: {name} can't be loaded from the hub: {reason}") from error
    return parts[0], [row for part in parts[1:] for row in part]


def _load(name: str, configuration: str, split: str) -> list[Found]:
    import datasets

    rows = datasets.load_dataset(name, configuration, split=split)
    where = f"{name} ({configuration}, {split}): row"
    return [Found(f"{where} {number}", row) for number, row in enumerate(rows, start=1)]

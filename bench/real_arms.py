"""What `bench/real.py` runs: its sizes, starts and arms, declared before any run, as run.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_texts import HAND_MADE, RECIPES

from mixloop.policies.mixture import water_fill

Json = dict[str, Any]

SEQUENCE = 256
MICRO_BATCH = 4  # windows, and so many in a step
STEP = SEQUENCE * MICRO_BATCH  # tokens
MAX_EPOCHS = 5.0
VOCABULARY = 4096


@dataclass(frozen=True)
class Size:
    """How long and how large the runs of a size are.

    ``items`` are the steering items of each benchmark, ``rounds`` (2 or 3: the third before the
    decay) how many experiments there may be, ``experiments`` the share of a run's tokens that their
    branches may cost together,
    ``proxies`` and ``proxy`` (tokens) what a search trains: half of them stop at half the length,
    so that all together cost about what one run does.
    """

    steps: int
    evaluations: int
    model: Mapping[str, int]
    items: int
    rounds: int
    experiments: float
    proxies: int
    proxy: int

    @property
    def tokens(self) -> int:
        return self.steps * STEP

    @property
    def every(self) -> int:
        """Steps between two evaluations."""
        return self.steps // self.evaluations


def _llama(hidden: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


SIZES = {
    "smoke": Size(48, 6, _llama(64, 2), 8, 2, 1.1, 4, 4 * STEP),  # minutes; says nothing
    "quick": Size(480, 12, _llama(128, 4), 60, 2, 0.9, 24, 24 * STEP),
    "long": Size(2000, 40, _llama(128, 4), 60, 3, 0.65, 40, 64 * STEP),
    "full": Size(2000, 40, _llama(256, 4), 80, 3, 0.65, 40, 64 * STEP),
}
"""`quick`: 1.3M parameters, 0.49M tokens, two rounds of experiments; `long`: the same model, 2.05M
tokens, three rounds; `full`: as long, 4.2M parameters. A round is a branch per source and one
unchanged."""

STARTS = ("uniform", "proportional")


@dataclass(frozen=True)
class Arm:
    """One way to choose the mixture.

    ``mixture`` is what a run begins with: the start's own, ``hand-made``, or ``search`` (the best
    mixture that a search's proxies point to; they are charged). ``part`` is how much of the size's
    budget of experiments there is.
    """

    policy: str = "static"
    options: Json = field(default_factory=dict)
    mixture: str = "start"
    part: float | None = None


RULES: Json = {
    "interventions": [
        {
            # what a person writes who tagged the sources and knows no more: after each of the
            # first evaluations, shift tokens from what serves no benchmark to what serves one
            "name": "towards-tags",
            "move": {"to": ["{benchmarks}"], "from": "rest", "step": 0.15, "cap": 0.85},
            "cooldown": "1 evaluation",
            "max_times": 4,
        }
    ]
}

ARMS: dict[str, Arm] = {
    "static": Arm(),
    "hand-made": Arm(mixture="hand-made"),
    "search": Arm(mixture="search"),
    "rules": Arm("rules", RULES),
    "law": Arm("law"),
    "bayes": Arm("bayes"),
    "experiment": Arm("experiment", part=1.0),
    "experiment-untold": Arm("experiment", {"tags": 0.0}, part=1.0),
    "experiment-half": Arm("experiment", part=0.5),
    "experiment-quarter": Arm("experiment", part=0.25),
}
"""`static` keeps the start: from uniform it is static-uniform, else static-proportional. The two
reference mixtures don't depend on a start and are run once a seed. `rules` and `experiment` are
told by tags which benchmark a source serves, `experiment-untold` is not."""

REFERENCES = ("hand-made", "search")


def policy_options(arm: Arm, size: Size) -> Json:
    """An arm's options; `bayes` tries mixtures in the first half of the evaluations at most."""
    if arm.policy == "bayes":
        return {"explore": min(MOST_TRIED, size.evaluations // 2)} | arm.options
    return dict(arm.options)


MOST_TRIED = 14
"""Mixtures that `bayes` tries by default with as many sources as here."""


def experiment_options(size: Size, part: float) -> tuple[Json, Json]:
    """`policy.with` and the section `experiments` of an arm that experiments: the one place."""
    budget = round(size.experiments * part * size.tokens)
    section = {"budget": budget, "device": "cpu", "threads": 1}
    return {"before_decay": size.rounds > 2}, section


def inside_cap(weights: Mapping[str, float], unique: Mapping[str, int], tokens: int) -> Json:
    """The nearest mixture that repeats no source more than ``MAX_EPOCHS`` times.

    Raises:
        ValueError: the sources are too small for the budget.
    """
    # a hair below, so that rounding to integer weights doesn't lift a source over its cap
    epochs = 0.999 * MAX_EPOCHS
    found = water_fill(weights, {n: (0.0, min(1.0, epochs * unique[n] / tokens)) for n in weights})
    if found is None:
        raise ValueError(f"{MAX_EPOCHS:g} epochs of all sources are fewer than {tokens:,} tokens")
    return found


def first_mixture(
    arm: Arm, start: str, unique: Mapping[str, int], tokens: int, searched: Mapping[str, float]
) -> Json:
    """What a run of this arm begins with, inside the epoch cap."""
    if arm.mixture == "search":
        weights = dict(searched)
    elif arm.mixture == "hand-made":
        weights = dict.fromkeys(unique, 0.0) | HAND_MADE
    elif start == "uniform":
        weights = dict.fromkeys(unique, 1 / len(unique))
    else:
        weights = {name: size / sum(unique.values()) for name, size in unique.items()}
    return inside_cap({name: weights.get(name, 0.0) for name in unique}, unique, tokens)


def evals_section(size: Size, items: Path, side: str, names: list[str]) -> Json:
    """Scoring by bits per byte of the gold answers: nothing is generated, no shots are shown."""
    bound = {} if side == "judging" else {"items": size.items}
    asked = {"shots": 0, "generate_items": 0, **bound}
    return {
        "benchmarks": {n: {**asked, "data": [str(items / side / n)]} for n in names},
        "steering": "bits_per_byte",
        "threads": 1,
        "samples": False,
        "unit_items": 512,
        "idle_seconds": 600,
    }


def run_yaml(
    name: str,
    arm: Arm,
    size: Size,
    *,
    seed: int,
    weights: Mapping[str, float],
    work: Path,
    benchmarks: list[str],
    init_from: Path | None = None,
) -> Json:
    """A run's whole configuration, as the product reads it; stores and items lie in ``work``."""
    options, experiments = policy_options(arm, size), None
    if arm.part is not None:
        more, experiments = experiment_options(size, arm.part)
        options |= more
    model = {"init_from": str(init_from)} if init_from else {"model": dict(size.model)}
    every = size.every * STEP
    config: Json = {
        "run": {"id": name, "dir": "run", "seed": seed},
        "budget": size.tokens,
        "sources": {
            source: {
                "path": str(work / "stores" / source),
                "tags": list(RECIPES[source].tags) if source in RECIPES else [],
                "weight": weight,
            }
            for source, weight in weights.items()
        },
        "evals": {
            "every": every - every // 10,  # checkpoints fall on whole steps
            **evals_section(size, work / "items", "steering", benchmarks),
        },
        "policy": {"use": arm.policy, "with": options},
        "guards": {"max_epochs": MAX_EPOCHS, "max_change": 0.3},
        "tracking": {"enabled": False},
        "controller": {"poll": 0.2},
        "search": {
            "dir": "search",
            "tokens": size.proxy,
            "trials": size.proxies,
            "workers": 1,
            "rungs": 2,
            "threads": 1,
        },
        "trainer": {
            **model,
            "tokenizer": str(work / "tokenizer"),
            "sequence_length": SEQUENCE,
            "micro_batch": MICRO_BATCH,
            "learning_rate": 2.0e-3,
            "warmup": size.tokens // 20,
            "decay": size.tokens // 5,
            "checkpoint_every": every,
            "keep": 3,
            "poll_every": 1,
            "status_every": 1,
            "precision": "fp32",
            "device": "cpu",
            "threads": 1,
        },
    }
    return config | ({"experiments": experiments} if experiments is not None else {})

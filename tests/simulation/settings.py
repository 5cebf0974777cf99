"""What run.yaml says, drawn from the seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

STARTS = {"web": 0.72, "code": 0.1, "maths": 0.18}
TOKENS = 10_000


def stores(base: Path) -> Path:
    """A folder of token stores under ``base``, made once."""
    folder = base / "stores"
    if folder.exists():
        return folder
    for name in STARTS:
        (folder / name).mkdir(parents=True)
        (folder / name / "tokens.bin").write_bytes(b"\0\0" * TOKENS)
        header = {"schema": "mixloop/store/1", "tokens": TOKENS, "documents": 1, "dtype": "uint16"}
        header |= {"vocab_size": 65536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
        (folder / name / "store.json").write_text(json.dumps(header))
    return folder


RULES = {
    "interventions": [
        {
            "name": "more-code",
            "when": {"tokens": {"after": 3000}},
            "move": {"to": "code", "from": "web", "step": 0.05, "cap": 0.4},
            "cooldown": "1 evaluations",
        }
    ]
}


def draw_settings(rng: random.Random, folder: Path, seed: int, budget: int) -> dict[str, Any]:
    """A configuration of the same run: sources and budget stay, the rest may differ."""
    use = rng.choice(["wander"] * 7 + ["static"])
    policy: dict[str, Any] = {"use": use}
    if use == "wander":
        policy["use"] = f"{__package__}.wander:Wander"
    approval = {"above": rng.choice([0.05, 0.15]), "timeout": rng.choice([None, 3000])}
    benchmarks = {"gsm8k": {"data": "packages"}}
    if rng.random() < 0.3:
        benchmarks["humaneval"] = {"data": "packages"}
    return {
        "run": {"id": "r", "dir": "run", "seed": seed},
        "budget": budget,
        "sources": {n: {"path": str(folder / n), "weight": w} for n, w in STARTS.items()},
        "evals": {"benchmarks": benchmarks, "every": rng.choice([None, None, 3200])},
        "policy": {**policy, "timeout": 20},
        "guards": {
            "max_change": rng.choice([0.1, 0.2, 0.3]),
            "max_epochs": rng.choice([None, None, 1.2, 2.5]),
            "cap": rng.choice([0.8, 1.0]),
            "floor": rng.choice([0.0, 0.02]),
            "dwell": rng.choice([0, 0, 2000]),
            "loss_spike": None,
        },
        "approval": approval if rng.random() < 0.5 else {},
        "experiments": _draw_experiments(rng, seed),
        "tracking": {"uri": "http://tracker"},
        "controller": {"poll": 1.0, "patience": 100},
        "trainer": {
            "sequence_length": 10,
            "micro_batch": 8,
            "poll_every": 5,
            "limits": {"cap": rng.choice([0.95, 1.0])},
        },
    }


def _draw_experiments(rng: random.Random, seed: int) -> dict[str, Any]:
    """Receipts in every second run, without a draw that would move all those after it."""
    budget = rng.choice([0, "10%", "40%", "80%", "80%"])
    return {"budget": budget, "receipts": budget != 0 and seed % 2 == 1}

"""``mixloop demo``: the whole loop in minutes on two cores, on text that is already here.

Real in every part: harvested text, a tokenizer trained on it, a Llama of a few million parameters
trained by the reference trainer, its checkpoints scored on the packaged items of four benchmarks,
and the rules policy repairing a mixture that starves maths and code on purpose.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mixloop.common import text
from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller.core import wording

if TYPE_CHECKING:
    from mixloop.contract import RunPaths
    from mixloop.controller.journal import Journal

BUDGET = 420_000  # tokens: about four minutes of one core
CHECKPOINTS = 8
VOCABULARY = 4096
SEQUENCE = 256
SOURCE_BYTES = 2_500_000
TOKENIZER_BYTES = 1_000_000  # of each source
STARVED = {"prose": 0.94, "code": 0.02, "math-docs": 0.02, "word-problems": 0.02}
TAGS = {"prose": ["web"], "code": ["code"], "math-docs": ["math"], "word-problems": ["math"]}
MATHS = ("gsm8k", "math")
MARK = "demo.json"


def run_demo(directory: Path, *, control: bool, seed: int, budget: str | None) -> int:
    """Run the demo (or its control run) and print what happened. Returns the exit code.

    Raises:
        BadInput: when the folder is not the demo's to replace, or the budget doesn't parse.
    """
    from mixloop.controller.service import run_both

    began = time.monotonic()
    tokens = _budget(budget)
    claim_folder(directory, {"seed": seed, "budget": tokens})
    name = "control" if control else "run"
    stores = prepare_sources(directory, seed)
    shutil.rmtree(directory / name, ignore_errors=True)
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(demo_config(name, stores, seed, tokens), sort_keys=False))
    say(f"training {text.tokens(tokens)} tokens from {wording.mixture(STARVED)}")
    say("the mixture is left alone" if control else "rules policy: see " + str(file))
    code = run_both(file, say)
    if code == 0:
        report(directory, name, tokens)
        say(f"done in {time.monotonic() - began:.0f} seconds")
    return code


def say(line: str) -> None:
    """One line for the person who watches."""
    print(line, flush=True)  # noqa: T201 - the demo's output


def _budget(budget: str | None) -> int:
    from mixloop.common.units import parse_tokens

    if budget is None:
        return BUDGET
    try:
        tokens = parse_tokens(budget)
    except ValueError as error:
        raise BadInput(f"--budget: {error}") from None
    if tokens < 200_000:
        raise BadInput(f"--budget: {budget} is too short to see anything; give at least 200k")
    return tokens


def claim_folder(directory: Path, mark: Json) -> None:
    """Make the folder the demo's. Prepared text is kept while the seed is the same.

    Raises:
        BadInput: when it holds something that is not the demo's.
    """
    marker = directory / MARK
    if directory.exists() and any(directory.iterdir()) and not marker.exists():
        raise BadInput(f"--dir: {directory} is not empty and not a demo's; give another folder")
    if marker.exists() and json.loads(marker.read_text()) != mark:
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(mark))


def prepare_sources(directory: Path, seed: int) -> dict[str, Path]:
    """Harvest text, train the tokenizer, tokenise; reuses what an earlier demo made."""
    from mixloop.trainer.prepare import prepare
    from mixloop.trainer.sources import train_tokenizer

    from .corpus import harvest

    stores = {name: directory / "stores" / name for name in STARVED}
    if all((path / "store.json").is_file() for path in stores.values()):
        say(f"sources: as prepared before in {directory / 'stores'}")
        return stores
    say("harvesting text from what is installed")
    try:
        harvested = harvest(directory / "text", limit_bytes=SOURCE_BYTES, seed=seed)
    except ModuleNotFoundError as error:
        raise BadInput(f"the demo's word problems: {error}") from None
    for source in harvested.values():
        say(f"harvested {source.describe()}")
    texts = (text for source in harvested.values() for text in _head(source.path))
    tokenizer = train_tokenizer(texts, directory / "tokenizer", VOCABULARY)
    for name, source in harvested.items():
        info = prepare([str(source.path)], stores[name], str(tokenizer), overwrite=True)
        say(f"prepared {name}: {info.tokens:,} unique tokens")
    return stores


def _head(path: Path) -> Iterator[str]:
    """Documents from the start of a jsonl file, enough to learn a vocabulary from."""
    left = TOKENIZER_BYTES
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            yield text
            left -= len(text)
            if left <= 0:
                return


def demo_config(name: str, stores: dict[str, Path], seed: int, budget: int) -> Json:
    """The run.yaml of the demo, or of its control run, as data."""
    every = budget // CHECKPOINTS
    sources = {
        source: {
            "path": str(Path("stores") / source),
            "tags": TAGS[source],
            "weight": STARVED[source],
        }
        for source in stores
    }
    static = {"use": "static"}
    return {
        "run": {"id": f"demo-{name}", "dir": name, "seed": seed},
        "budget": budget,
        "sources": sources,
        "evals": {
            "every": every - every // 10,  # checkpoints fall on whole steps
            "threads": 1,
            "benchmarks": {
                "mmlu": {"data": "packages", "items": 60},
                "gsm8k": {"data": "packages", "shots": 0, "max_new_tokens": 48},
                "math": {"data": "packages", "max_new_tokens": 48},
                "humaneval": {
                    "data": "packages",
                    "items": 80,
                    "generate_items": 8,
                    "max_new_tokens": 48,
                },
            },
        },
        "policy": static if name == "control" else {"use": "rules", "with": demo_rules(every)},
        "guards": {"max_epochs": 5, "max_change": 0.30, "floor": 0.01},
        "tracking": {"uri": "sqlite:///mlflow.db", "experiment": "mixloop-demo"},
        "controller": {"poll": 0.5},
        "trainer": {
            "tokenizer": "tokenizer",
            "model": {
                "hidden_size": 256,
                "intermediate_size": 768,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
            "sequence_length": SEQUENCE,
            "micro_batch": 4,
            "learning_rate": 2.0e-3,
            "warmup": budget // 20,
            "decay": budget // 5,
            "checkpoint_every": every,
            "poll_every": 5,
            "status_every": 5,
            "threads": 1,
        },
    }


def demo_rules(every: int) -> Json:
    """The demo's rules: while a benchmark is hard to predict, feed it from the prose."""
    return {
        "combine": True,
        "interventions": [
            {
                "name": "maths-starved",
                "when": {"level": {"benchmark": list(MATHS), "above": 1.0}},
                "move": {"to": "math", "from": ["prose"], "step": 0.15, "cap": 0.45},
                "cooldown": {"tokens": every},
                "max_times": 3,
            },
            {
                "name": "code-starved",
                "when": {"level": {"benchmark": ["humaneval"], "above": 1.0}},
                "move": {"to": ["code"], "from": ["prose"], "step": 0.10, "cap": 0.30},
                "cooldown": {"tokens": every},
                "max_times": 3,
            },
        ],
    }


# -- the report --------------------------------------------------------------------------------


def report(directory: Path, name: str, budget: int) -> None:
    """What happened: data used, interventions with their outcomes, the picture, where to look."""
    from mixloop.controller import views

    paths, journal = _open(directory, name)
    _report_scores(views.status_json(views.look(paths, journal)))
    _report_interventions(views.history(journal))
    say("")
    picture = draw_run(directory, name, budget)
    if all((directory / run / "journal.db").exists() for run in ("run", "control")):
        compare(directory)
        picture = draw_run(directory, "run", budget)  # now with the control run beside it
    else:
        say("`mixloop demo --control` trains the same without interventions and compares the two")
    database = (directory / "mlflow.db").resolve()
    say(f"picture:  {picture.resolve()}")
    say(f"history:  mixloop history {directory / name}")
    say(f"explain:  mixloop explain {directory / name} d-000001")
    say(f"MLflow:   mlflow ui --backend-store-uri sqlite:///{database}")


def _open(directory: Path, name: str) -> tuple[RunPaths, Journal]:
    from mixloop.controller import views

    paths, journal = views.open_run(directory / name)
    assert journal is not None
    return paths, journal


def draw_run(directory: Path, name: str, budget: int) -> Path:
    """The picture of a run; the demo's own shows the control run too once there is one."""
    from mixloop.controller import views
    from mixloop.controller.report import draw

    paths, journal = _open(directory, name)
    beside = name == "run" and (directory / "control" / "journal.db").exists()
    return draw(
        views.history(journal),
        views.benchmarks(journal),
        views.segments(paths, SEQUENCE),
        directory / f"{name}.png",
        title="mixloop demo" if name == "run" else "mixloop demo, control run",
        budget=budget,
        control=views.benchmarks(_open(directory, "control")[1]) if beside else None,
    )


def _report_scores(status: Json) -> None:
    say("")
    for benchmark, score in status["benchmarks"].items():
        metrics = ", ".join(
            f"{metric} {value['value']:.3f} ± {value['stderr'] or 0:.3f} (n={value['n']})"
            for metric, value in score["metrics"].items()
        )
        reason = f"; {score['reason']}" if score["reason"] else ""
        say(f"{benchmark:<10} {metrics or score['status']}{reason}; items: {score['data']}")


def _report_interventions(decisions: list[Json]) -> None:
    interventions = [decision for decision in decisions if decision["verdict"] == "intervene"]
    say("")
    say(f"{len(interventions)} interventions in {len(decisions)} decisions")
    for decision in interventions:
        moves = wording.moves(decision["weights_before"], decision["weights_after"])
        say(
            f"{decision['id']} after step {decision['step']} "
            f"({text.tokens(decision['tokens'])} tokens), "
            f"in force at step {decision['applied_step']}"
        )
        say(f"   why    {decision['reason']}")
        say(f"   moved  {moves}")
        for note in decision["guards"]:
            if note["action"] != "passed":
                say(f"   guard  {note['guard']} {note['action']}: {note['detail']}")
        for line in wording.outcome_lines(decision["outcome"]):
            say(f"   next   {line}")


def compare(directory: Path) -> None:
    """Say how the demo ended against its control run, paired over items.

    What is compared is their last common checkpoint.
    """
    from mixloop.common.paired import paired_difference
    from mixloop.controller.decisions import observation_builder
    from mixloop.policies.interface import BITS_PER_BYTE, pooled_items

    sides = [
        {evaluation.step: evaluation for evaluation in observation_builder.evaluations(journal)}
        for _, journal in (_open(directory, "control"), _open(directory, "run"))
    ]
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        say("no checkpoint is scored in both runs, so they can't be compared")
        return
    control, run = (side[common[-1]] for side in sides)
    say(f"final bits per byte at step {common[-1]}, control run against this one (paired):")
    for group in (MATHS, ("humaneval",), ("mmlu",)):
        old, new = (pooled_items(side, group, BITS_PER_BYTE) for side in (control, run))
        difference = paired_difference(old, new, False)
        low, high = difference.interval()
        say(
            f"   {' + '.join(group):<14} {_mean(old):.3f} -> {_mean(new):.3f}, "
            f"gain {difference.gain:+.4f} ± {difference.stderr:.4f}, "
            f"95% interval [{low:+.4f}, {high:+.4f}], n={difference.n}"
        )


def _mean(items: Any) -> float:
    """The weighted mean of items ``{id: (value, weight)}``."""
    total = sum(weight for _, weight in items.values())
    return float(sum(value * weight for value, weight in items.values()) / total)

"""``mixloop eval``: one checkpoint scored as the controller would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.controller import show
from mixloop.controller.errors import BadInput
from mixloop.evals.scorecard import Scorecard
from mixloop.evals.settings import EvalSettings
from mixloop.evals.worker_client import EvaluationError, evaluate

if TYPE_CHECKING:
    from rich.table import Table


def score_checkpoint(
    checkpoint: Path, config: Path | None, items: int | None, device: str | None, out: Path | None
) -> Scorecard:
    """Score a checkpoint and wait, saying on stderr what is being asked.

    Raises:
        BadInput: when there is no checkpoint, or the configuration is wrong.
        SystemExit: with code 1 when no scorecard came.
    """
    if not (checkpoint / "config.json").is_file():
        raise BadInput(
            f"{checkpoint}: no checkpoint here (config.json is missing); "
            "give a folder in Hugging Face format"
        )
    settings = _settings(config)
    changes: dict[str, object] = {"device": device} if device else {}
    if items is not None:
        changes["benchmarks"] = {
            name: one.model_copy(update={"items": items})
            for name, one in settings.benchmarks.items()
        }
    try:
        return evaluate(
            checkpoint,
            settings.model_copy(update=changes),
            out=out,
            progress=lambda text: print(text, file=sys.stderr, flush=True),  # noqa: T201
        )
    except EvaluationError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command's output
        raise SystemExit(1) from None


def _settings(config: Path | None) -> EvalSettings:
    if config is None:
        return EvalSettings()
    from mixloop.controller.config import load_config
    from mixloop.controller.planning import read_plan

    run = load_config(config)
    plan = read_plan(run)  # the items of the run's own checkpoints, so that scores compare
    return plan.pin(run.evals) if plan is not None else run.evals


def scorecard_table(card: Scorecard) -> Table:
    """A scorecard for a person: every metric with its standard error and what it rests on."""
    where = f" at step {card.step}" if card.step is not None else ""
    columns = ("benchmark", "metric", "value", "± s.e.", "items", "excluded", "shots", "data")
    made = show.table(f"{show.clean(card.checkpoint)}{where}", columns)
    for name, score in card.benchmarks.items():
        for metric, found in score.metrics.items():
            error = "-" if found.stderr is None else f"{found.stderr:.4f}"
            counts = (str(found.n), str(found.excluded), str(score.shots))
            made.add_row(name, metric, f"{found.value:.4f}", error, *counts, show.cell(score.data))
        if score.reason:
            made.add_row(name, "missing", *"-----", show.cell(score.reason))
    return made

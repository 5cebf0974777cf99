"""``mixloop check``: everything that can be known to be wrong before a run starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.common.text import tokens
from mixloop.common.types import Json
from mixloop.contract import RunPaths, read_status
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.decisions import observation_builder
from mixloop.controller.loop import measured_plan, read_plan
from mixloop.controller.tracking import why_not_trusted
from mixloop.evals.planning import EvalPlan

from . import launch
from .feasibility import doubts, impossible
from .undecided import undecided


def check_run(path: Path, checkpoint: Path | None = None, speed: float | None = None) -> Json:
    """Validate a run and say what its first mixture leads to.

    Args:
        path: The run.yaml.
        checkpoint: Measure the evaluation plan on this one now, when the run has none yet.
        speed: Training tokens per second, for a run that has not said any itself.

    Returns:
        ``run``, ``sources`` (per source: weight, unique tokens, projected epochs at the end of the
        budget), ``evals_plan`` (the plan of ``evals.budget`` as in its file, None without one),
        ``undecided`` (what the run can't decide, however it goes) and ``notes`` (what is legal but
        worth knowing).

    Raises:
        BadInput: one line on the first thing that is wrong.
    """
    config = load_config(path)
    check_evals(path, config)
    _check_items(path, config)
    infos = observation_builder.source_infos(config)
    sizes = observation_builder.epoch_tokens(config, infos)
    weights = config.start_weights(sizes)
    launch.check_training(config)
    needs = check_feasible(path, config, infos)
    sources = {
        name: {
            "weight": weights[name],
            "format": infos[name].format,
            "unique_tokens": sizes[name],
            "projected_epochs": weights[name] * config.budget / sizes[name],
            "tags": list(config.sources[name].tags),
        }
        for name in config.sources
    }
    plan, kept = _plan(config, checkpoint, speed)
    return {
        "run": config.run.id,
        "sources": sources,
        "evals_plan": plan.model_dump(mode="json", by_alias=True) if plan is not None else None,
        "undecided": undecided(config, weights, needs, plan),
        "notes": [
            *doubts(config, weights, needs),
            *_notes(config, sources),
            *_plan_notes(config, plan, kept=kept),
        ],
    }


def _plan(
    config: RunConfig, checkpoint: Path | None, speed: float | None
) -> tuple[EvalPlan | None, bool]:
    """The plan, and whether it is the run's own rather than measured just now."""
    kept = read_plan(config)
    if kept is not None or checkpoint is None:
        return kept, kept is not None
    if config.evals.budget is None:
        raise BadInput("--checkpoint: evals.budget is not set, so there is nothing to plan")
    status = read_status(RunPaths(config.run.dir).status).value
    rate = speed or (status.tokens_per_second if status is not None else None)
    if not rate:
        raise BadInput("--checkpoint: the run has not trained yet; give --speed TOKENS_PER_SECOND")
    return measured_plan(config, checkpoint, rate), False


def _plan_notes(config: RunConfig, plan: EvalPlan | None, *, kept: bool) -> list[str]:
    budget = config.evals.budget
    if budget is None:
        return []
    if plan is None:
        return [
            f"evals.budget {100 * budget:.3g}%: items are planned at the first checkpoint and then "
            "kept; --checkpoint DIR measures now"
        ]
    notes = list(plan.notes)
    if not kept:
        notes.append("measured now; the run makes its own plan at its first checkpoint")
    elif plan.budget != budget:
        notes.append(
            f"evals.budget is {100 * budget:.3g}%, but the run keeps the plan it made for "
            f"{100 * plan.budget:.3g}%: its checkpoints compare item by item only under one plan"
        )
    return notes


def check_feasible(
    path: Path, config: RunConfig, infos: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """That the policy can be asked, and that nothing is configured that can't work.

    Returns:
        The evaluations that the policy needs (:func:`~.launch.check_policy`).

    Raises:
        BadInput: naming the first that can't.
    """
    needs = launch.check_policy(config, path.parent.resolve())
    infos = infos or observation_builder.source_infos(config)
    weights = config.start_weights({name: info.tokens for name, info in infos.items()})
    for problem in impossible(config, infos, weights, needs):
        raise BadInput(f"{path}: {problem}")
    return needs


def check_evals(path: Path, config: RunConfig) -> None:
    """That every benchmark is one of the four or a task of lm-eval's, and a worker can start.

    Raises:
        BadInput: naming the first that isn't, and what may be meant.
    """
    from mixloop.evals.items import ItemsError
    from mixloop.evals.lm_eval_tasks import unknown_benchmarks
    from mixloop.evals.workers import launcher_problem

    for section in ("benchmarks", "watch"):
        try:
            unknown = unknown_benchmarks(getattr(config.evals, section))
        except ItemsError as error:
            raise BadInput(f"{path}: evals.{section}: {error}") from None
        for name, mend in unknown.items():
            raise BadInput(f"{path}: evals.{section}.{name}: no such benchmark; {mend}")
    for section, launcher in (
        ("evals", config.evals.launcher),
        ("experiments", config.experiments.launcher),
    ):
        problem = launcher_problem(launcher)
        if problem is not None:
            raise BadInput(f"{path}: {section}.{problem}")
    trainer = config.experiments.trainer
    if trainer is not None and shutil.which(trainer[0]) is None:
        raise BadInput(
            f"{path}: experiments.trainer: there is no program {trainer[0]!r} here; give one on "
            "PATH or by its path"
        )


def _check_items(path: Path, config: RunConfig) -> None:
    """That files of items are there. A start leaves this out: one may go on without a benchmark."""
    for section in ("benchmarks", "watch"):
        for name, asked in getattr(config.evals, section).items():
            for place in asked.data if isinstance(asked.data, tuple) else ():
                if not place.exists():
                    key = f"evals.{section}.{name}.data"
                    raise BadInput(f"{path}: {key}: {place}: no such file or folder")


def _notes(config: RunConfig, sources: Json) -> list[str]:
    notes = []
    limit = config.guards.max_epochs
    for name, source in sources.items():
        if limit is not None and source["projected_epochs"] > limit:
            notes.append(
                f"{name}: held to the end, the first mixture repeats it "
                f"{source['projected_epochs']:.1f} times, above guards.max_epochs {limit:g}"
            )
    every = config.evals.every
    if every is None:
        notes.append("evals.every is not set: every checkpoint is scored")
    elif every > config.budget:
        notes.append(
            f"evals.every {tokens(every)} is above the budget {tokens(config.budget)}: "
            "only the first and last checkpoints are scored"
        )
    if config.trainer.lr_schedule == "cosine" and config.guards.decay != "allow":
        notes.append(
            "trainer.lr_schedule cosine decays from the end of the warm-up on, and guards.decay "
            f"{config.guards.decay} gives no credit for gains meanwhile: policies that act on "
            "gains will not intervene; take wsd, or write `decay: allow`"
        )
    if config.experiment_tokens:
        notes.append(
            f"experiments may take {tokens(config.experiment_tokens)} tokens, trained on "
            f"{config.experiments.device} beside the run"
        )
        notes += _receipts(config)
    elif config.policy.use == "experiment":
        notes.append(
            "policy experiment asks for experiments, and experiments.budget is 0: it goes by the "
            "run's own scores alone; write experiments: {budget: 2%}"
        )
    if config.run.dir.exists() and config.run.dir.stat().st_mode & 0o022:
        notes.append(f"{config.run.dir}: others may write here; `chmod go-w` keeps orders yours")
    if config.tracking.enabled and (problem := why_not_trusted(str(config.tracking.uri))):
        notes.append(f"tracking.uri: {problem}")
    notes.append(_sandbox(config))
    return notes


def _receipts(config: RunConfig) -> list[str]:
    """How many changes the budget of experiments has receipts for, if they are asked for."""
    every = config.evals.every or config.trainer.checkpoint_every
    if not config.experiments.receipts or not every:
        return []
    room, cost = config.experiment_tokens // (2 * every), tokens(2 * every)
    if not room:
        return [
            f"experiments.receipts: no change will have one: it takes {cost} tokens, two "
            f"evaluations, and experiments.budget is {tokens(config.experiment_tokens)}"
        ]
    return [
        f"experiments.receipts: {cost} tokens a change, which the budget has for {room} at most"
    ]


def _sandbox(config: RunConfig) -> str:
    if "humaneval" not in config.evals.asked:
        return "humaneval is not asked"
    from mixloop.evals.sandbox import Sandbox

    sandbox = Sandbox(config.evals.sandbox)
    try:
        reason = sandbox.unusable()
        how = f"will not run: {reason}" if reason else f"run under {sandbox.kind}"
        return f"humaneval: programs {how}"
    finally:
        sandbox.close()

"""From a run.yaml to the plan of its search, with everything checked that can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixloop.common.errors import BadInput
from mixloop.contract import read_manifest
from mixloop.controller.config import RunConfig, SearchPlan, rungs_of, subsampled
from mixloop.controller.decisions import observation_builder

from .proxy import accumulation_of


@dataclass(frozen=True)
class SearchArgs:
    """What the command line says; None leaves it to the ``search:`` section."""

    checkpoint: Path | None = None
    tokens: int | None = None
    trials: int | None = None
    workers: int | None = None
    out: Path | None = None


def plan_search(path: Path, config: RunConfig, args: SearchArgs) -> SearchPlan:
    """The plan of a search.

    Raises:
        BadInput: one line naming the key, the value and the mend.
    """
    search = config.search
    tokens = args.tokens or search.tokens
    if not tokens:
        raise BadInput(
            f"{path}: search.tokens: missing; give the tokens of one proxy (or --tokens)"
        )
    active = [name for name, source in config.sources.items() if not source.standby]
    if len(active) < 2:
        raise BadInput(f"{path}: sources: a search needs two that are not on standby")
    window = config.trainer.sequence_length
    target = _target(config, args.checkpoint)
    if tokens > target:
        raise BadInput(
            f"{path}: search.tokens: {tokens:,} is more than the {target:,} tokens that the "
            "proxies stand for; give fewer"
        )
    unique = observation_builder.unique_tokens(config)
    sizes = {name: unique[name] for name in active}
    start = config.start_weights(unique)
    rungs = rungs_of(tokens, search.rungs, search.reduction)
    step = window * (search.micro_batch or config.trainer.micro_batch)
    if rungs[0] < step * accumulation_of(config):
        raise BadInput(f"{path}: search.rungs: the first ends before one step; give more tokens")
    return SearchPlan(
        folder=_folder(config, args),
        tokens=tokens,
        target=target,
        trials=args.trials or search.trials or 3 * (len(active) + 1),
        workers=args.workers or search.workers,
        rungs=rungs,
        reduction=search.reduction,
        ratio=tokens / target,
        unique={n: subsampled(size, tokens / target, window) for n, size in sizes.items()},
        sizes=sizes,
        most=_most(path, config, sizes, target),
        start={name: start[name] for name in active},
        importance=_importance(path, config),
        seed=config.run.seed,
        checkpoint=args.checkpoint.resolve() if args.checkpoint else None,
    )


def _folder(config: RunConfig, args: SearchArgs) -> Path:
    """Anneals from a checkpoint are another study than proxies from scratch."""
    if args.out is not None:
        return args.out.resolve()
    base = config.search.dir or config.run.dir / "search"
    return base / f"from-{args.checkpoint.resolve().name}" if args.checkpoint else base


def _target(config: RunConfig, checkpoint: Path | None) -> int:
    """Tokens that the found mixture is for: the run's, or what is left after the checkpoint."""
    if checkpoint is None:
        return config.budget
    if not (checkpoint / "config.json").is_file():
        raise BadInput(
            f"--from {checkpoint}: no checkpoint here (config.json is missing); "
            "give a folder in Hugging Face format"
        )
    manifest = read_manifest(checkpoint).value
    left = config.budget - (manifest.tokens if manifest is not None else 0)
    if left <= 0:
        raise BadInput(f"--from {checkpoint}: the budget is spent there; nothing is left to plan")
    return left


def _most(path: Path, config: RunConfig, sizes: dict[str, int], target: int) -> dict[str, float]:
    """Greatest share of each source: the guards' cap, and its epochs over the target."""
    guards = config.guards
    cap = guards.cap if guards.cap is not None else 1.0
    epochs = guards.max_epochs
    most = {
        name: min(cap, 1.0, epochs * size / target if epochs is not None else 1.0)
        for name, size in sizes.items()
    }
    if sum(most.values()) < 1:
        raise BadInput(
            f"{path}: guards.max_epochs: {epochs:g} epochs of all sources are fewer tokens than "
            f"the {target:,} to plan for; raise it, or lower the budget"
        )
    return most


def _importance(path: Path, config: RunConfig) -> dict[str, float]:
    goals = config.objective
    weights = {n: goals[n].weight if n in goals else 1.0 for n in config.evals.benchmarks}
    if not any(weights.values()):
        raise BadInput(f"{path}: evals.benchmarks: none counts, so there is nothing to search by")
    return {name: weight for name, weight in weights.items() if weight > 0}

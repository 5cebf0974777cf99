"""``mixloop simulate``: every policy in every world and seed, and what came out as a report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mixloop.common.errors import BadInput
from mixloop.common.files import unwritable
from mixloop.common.parallel import cores, each, progress
from mixloop.common.types import Json
from mixloop.policies.interface import PolicyError

from . import scores
from .epoch_caps import compare_ledgers
from .simulate_args import SimulateArgs, SimulationPlan, plan_simulations
from .tasks import SimulationTask, run_task

MAX_EPOCHS = 5.0  # what a run is replayed under that sets no cap itself


@dataclass
class SimulationResults:
    """All runs by policy and world, and what they are measured by, each a list over seeds.

    ``ledgers`` are a configured run's first seed by policy, world and ``reporting`` or
    ``enforcing``.
    """

    plan: SimulationPlan
    runs: dict[tuple[str, str], list[Json]] = field(default_factory=dict)
    references: dict[str, list[Json]] = field(default_factory=dict)
    ledgers: dict[tuple[str, str], dict[str, Json]] = field(default_factory=dict)

    def add(self, task: SimulationTask, result: Json) -> None:
        """Take in what a task returned."""
        world = task.setup.label
        if task.policy is None:
            self.references.setdefault(world, []).append(result)
            return
        key = (task.policy.label, world)
        if task.ledger is None:
            self.runs.setdefault(key, []).append(result)
        else:
            self.ledgers.setdefault(key, {})[task.ledger] = result


def run_simulations(args: SimulateArgs) -> SimulationResults:
    """Run what is asked for.

    Raises:
        BadInput: one line on the first thing that is wrong with it.
    """
    plan = plan_simulations(args)
    tasks = list(_tasks(plan))
    try:
        with progress("simulating", len(tasks)) as done:
            results = each(run_task, tasks, args.jobs or cores(), done)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    simulations = SimulationResults(plan)
    for task, result in zip(tasks, results, strict=True):
        simulations.add(task, result)
    return simulations


def _tasks(plan: SimulationPlan) -> Iterator[SimulationTask]:
    """References, runs, and a configured run twice more on its first seed."""
    seeds = range(plan.seeds)
    pairs = [(policy, setup) for policy in plan.policies for setup in plan.setups]
    yield from (SimulationTask(setup, seed) for setup in plan.setups for seed in seeds)
    yield from (SimulationTask(setup, seed, policy) for policy, setup in pairs for seed in seeds)
    config = plan.config
    if config is None:
        return
    for policy, setup in pairs:
        for ledger, limit in (("reporting", None), ("enforcing", _cap(plan))):
            guards = config.guards.model_copy(update={"max_epochs": limit})
            capped = replace(setup, config=config.model_copy(update={"guards": guards}))
            yield SimulationTask(capped, 0, policy, ledger)


def _cap(plan: SimulationPlan) -> float:
    return (plan.config.guards.max_epochs if plan.config is not None else None) or MAX_EPOCHS


def simulation_report(results: SimulationResults) -> Json:
    """What ``mixloop simulate --json`` prints.

    ``standings``: per policy and world the summary of :func:`scores.summary` with its ``runs``;
    ``control``: per world the regret of the mixture left as it started; ``ledgers``: a configured
    run with the ledger reporting and enforcing.
    """
    plan = results.plan
    notes = {
        f"{world}: {reference['note']}"
        for world, references in results.references.items()
        for reference in references
        if reference["note"]
    }
    return {
        "run": plan.config.run.id if plan.config is not None else None,
        "policies": [policy.label for policy in plan.policies],
        "worlds": [setup.label for setup in plan.setups],
        "seeds": plan.seeds,
        "standings": [
            _policy_scores(policy, world, runs, results.references[world])
            for (policy, world), runs in results.runs.items()
        ],
        "control": [
            {"world": world, "regret": _control_regret(references)}
            for world, references in results.references.items()
        ],
        "ledgers": [
            {"policy": policy, "world": world, "max_epochs": _cap(plan), **compare_ledgers(**pair)}
            for (policy, world), pair in results.ledgers.items()
        ],
        "notes": sorted(notes),
    }


def _policy_scores(
    policy: str, world: str, runs: Sequence[Json], references: Sequence[Json]
) -> Json:
    scored = []
    for seed, (run, reference) in enumerate(zip(runs, references, strict=True)):
        kept = [*("final", "verdicts", "slowest", "seconds", "failed", "scores")]
        kept += ["experiments", "cost"]
        score = scores.score(reference["control"], reference["optimum"], run["final"])
        measures = {name: reference[name] for name in ("control", "optimum")}
        scored.append({"seed": seed, **score, **measures, **{name: run[name] for name in kept}})
    return {"policy": policy, "world": world, **scores.summary(scored), "runs": scored}


def _control_regret(references: Sequence[Json]) -> Json | None:
    regrets = [
        reference["control"] - reference["optimum"]
        for reference in references
        if reference["optimum"] is not None
    ]
    return scores.spread(regrets, high=True)


def check_outputs(plot: Path | None, html: Path | None) -> None:
    """Refuse files that could not be written, before anything is run.

    Raises:
        BadInput: naming the file.
    """
    if plot is not None and plot.suffix.lower() not in {".png", ".svg"}:
        raise BadInput(f"--plot: {plot}: a picture is .png or .svg")
    for name, path in (("--plot", plot), ("--html", html)):
        if path is not None and (problem := unwritable(path, parents=True)) is not None:
            raise BadInput(f"{name}: {path} {problem}")


def write_outputs(
    results: SimulationResults, report: Json, plot: Path | None, html: Path | None
) -> None:
    """Draw the picture and write the page, where asked for."""
    if plot is None and html is None:
        return
    from .figure import draw
    from .report import page

    if plot is not None:
        draw(results.runs, results.references, plot)
    if html is not None:
        with tempfile.TemporaryDirectory() as folder:
            picture = draw(results.runs, results.references, Path(folder) / "picture.png")
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(page(report, picture), encoding="utf-8")

"""``mixloop simulate``: every policy on every world and seed, and what came out as a report."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixloop.common.errors import BadInput
from mixloop.common.parallel import cores, each, progress
from mixloop.common.types import Json
from mixloop.policies.interface import PolicyError

from . import scores
from .contest import Contest, Played, PolicyEntry, SimulationSetup, SimulationTask, run_task
from .epoch_caps import compare_ledgers
from .simulate_args import SimulateArgs, prepare

MAX_EPOCHS = 5.0  # what a run is replayed under that sets no cap itself


def play(wanted: SimulateArgs) -> Played:
    """Run what was asked for.

    Raises:
        BadInput: one line on the first thing that is wrong with it.
    """
    contest = prepare(wanted)
    seeds = range(contest.seeds)
    references = [SimulationTask(arena, seed) for arena in contest.arenas for seed in seeds]
    pairs = [(entrant, arena) for entrant in contest.entrants for arena in contest.arenas]
    runs = [SimulationTask(arena, seed, entrant) for entrant, arena in pairs for seed in seeds]
    twice = _twice(contest, pairs)
    tasks = [*references, *runs, *twice]
    try:
        with progress("simulating", len(tasks)) as done:
            results = each(run_task, tasks, wanted.jobs or cores(), done)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    played = Played(contest)
    for task, result in zip(references, results, strict=False):
        played.references.setdefault(task.arena.label, []).append(result)
    for task, result in zip(runs, results[len(references) :], strict=False):
        assert task.entrant is not None
        key = (task.entrant.label, task.arena.label)
        played.runs.setdefault(key, []).append(result)
    played.ledgers = _ledgers(twice, results[len(references) + len(runs) :])
    return played


def _twice(
    contest: Contest, pairs: Sequence[tuple[PolicyEntry, SimulationSetup]]
) -> list[SimulationTask]:
    """A configured run again on its first seed: the ledger reporting only, then enforcing."""
    tasks = []
    for entrant, arena in pairs:
        config = arena.config
        if config is None:
            continue
        cap = config.guards.max_epochs or MAX_EPOCHS
        for limit in (None, cap):
            guards = config.guards.model_copy(update={"max_epochs": limit})
            changed = config.model_copy(update={"guards": guards})
            tasks.append(SimulationTask(replace(arena, config=changed), 0, entrant))
    return tasks


def _ledgers(tasks: Sequence[SimulationTask], results: Sequence[Json]) -> list[Json]:
    found = []
    for index in range(0, len(tasks), 2):
        task, enforced = tasks[index], tasks[index + 1]
        assert task.entrant is not None
        assert enforced.arena.config is not None
        found.append(
            {
                "policy": task.entrant.label,
                "world": task.arena.label,
                "max_epochs": enforced.arena.config.guards.max_epochs,
                **compare_ledgers(results[index], results[index + 1]),
            }
        )
    return found


def contest_report(played: Played) -> Json:
    """What ``mixloop simulate --json`` prints.

    ``standings``: per policy and world the summary of ``standings.summary`` with its ``runs``;
    ``control``: per world the regret of the mixture left as it started; ``ledgers``: a configured
    run with the ledger reporting and enforcing.
    """
    contest = played.contest
    notes = {
        f"{world}: {one['note']}"
        for world, found in played.references.items()
        for one in found
        if one["note"]
    }
    return {
        "run": contest.config.run.id if contest.config is not None else None,
        "policies": [entrant.label for entrant in contest.entrants],
        "worlds": [arena.label for arena in contest.arenas],
        "seeds": contest.seeds,
        "standings": [
            _standing(policy, world, runs, played.references[world])
            for (policy, world), runs in played.runs.items()
        ],
        "control": [
            {"world": world, "regret": _control_regret(found)}
            for world, found in played.references.items()
        ],
        "ledgers": played.ledgers,
        "notes": sorted(notes),
    }


def _standing(policy: str, world: str, runs: Sequence[Json], references: Sequence[Json]) -> Json:
    scored = []
    for seed, (run, reference) in enumerate(zip(runs, references, strict=True)):
        found = scores.score(reference["control"], reference["optimum"], run["final"])
        kept = ("final", "verdicts", "slowest", "seconds", "failed", "scores")
        measured = {name: reference[name] for name in ("control", "optimum")}
        scored.append({"seed": seed, **found, **measured, **{name: run[name] for name in kept}})
    return {"policy": policy, "world": world, **scores.summary(scored), "runs": scored}


def _control_regret(references: Sequence[Json]) -> Json | None:
    known = [one["control"] - one["optimum"] for one in references if one["optimum"] is not None]
    return scores.spread(known, high=True)


def check_outputs(plot: Path | None, html: Path | None) -> None:
    """Refuse files that could not be written, before anything is run.

    Raises:
        BadInput: naming the file.
    """
    if plot is not None and plot.suffix.lower() not in {".png", ".svg"}:
        raise BadInput(f"--plot: {plot}: a picture is .png or .svg")
    for name, path in (("--plot", plot), ("--html", html)):
        if path is not None and path.is_dir():
            raise BadInput(f"{name}: {path} is a folder; name a file")


def write_outputs(played: Played, found: Json, plot: Path | None, html: Path | None) -> None:
    """Draw the picture and write the page, where asked for."""
    if plot is None and html is None:
        return
    from .figure import draw
    from .report import page

    if plot is not None:
        draw(played, plot)
    if html is not None:
        with tempfile.TemporaryDirectory() as folder:
            picture = draw(played, Path(folder) / "picture.png")
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(page(found, picture), encoding="utf-8")

"""``mixloop backtest``: what another policy would have proposed at each decision of a recorded run.

Each observation is built again from the journal as it was then: the scores, decisions and orders up
to it, and the trainer's state, which is kept beside each decision. What the policy would have
changed is not carried on: the next observation is the recorded run's again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common import text
from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller import views
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.core import NOTHING, DecisionRow, make_decision, wording
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal, queries
from mixloop.policies.evidence import policy_standing, vetoes
from mixloop.policies.interface import Observation, Policy, PolicyError, Source, load_policy
from mixloop.policies.mixture import total_variation

from .simulation import answer_of
from .virtual_run import status_of

if TYPE_CHECKING:
    from rich.table import Table


def backtest(run: Path, ref: str, options: Mapping[str, Any] | None, base: Path) -> Json:
    """Replay a run's journal past a policy.

    Args:
        run: run.yaml, or a run folder whose run.yaml lies in it or just above.
        ref: the policy.
        options: its options; None for the run's own where it is the run's own policy.
        base: folder that a file reference is relative to.

    Returns:
        ``run``, ``policy``, ``decisions``, each as it was and as it would have been made past the
        guards of the run, and a ``summary``.

    Raises:
        BadInput: no such run, journal or policy.
    """
    config, home = run_config(run)
    _, journal = views.open_run(config.run.dir)
    if journal is None:
        raise BadInput(f"{run}: no controller has run here, so there is nothing to replay")
    if options is None:
        options = config.policy.options if ref == config.policy.use else {}
    try:
        policy = load_policy(ref, options, base=home if ref == config.policy.use else base)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    section = config.policy.model_copy(update={"use": ref, "options": dict(options)})
    replayed = config.model_copy(update={"policy": section})
    decisions = []
    for was, observation in recorded(journal, config):
        last = queries.last_applied_tokens(journal, before=was.seq, until=observation.tokens)
        waiting = queries.waiting_before(journal, was)
        decisions.append(_replay(was, observation, last, waiting, policy, replayed))
    summary = _summary(decisions)
    return {"run": config.run.id, "policy": ref, "decisions": decisions, "summary": summary}


def run_config(run: Path) -> tuple[RunConfig, Path]:
    """The configuration that RUN names, and the folder its references are relative to.

    Raises:
        BadInput: when there is none.
    """
    if run.is_file():
        return load_config(run), run.parent.resolve()
    if not run.is_dir():
        raise BadInput(f"{run}: no run here; give its run.yaml")
    folder = run.resolve()
    found = {}
    for place in (folder, *folder.parents[:2]):
        for path in sorted((*place.glob("*.yaml"), *place.glob("*.yml"))):
            try:
                config = load_config(path)
            except BadInput:
                continue  # some other YAML file
            if config.run.dir.resolve() == folder:
                found[path] = config
    if len(found) > 1:  # the one that was run can't be told from a copy with other settings
        names = ", ".join(map(str, found))
        raise BadInput(f"{run}: {len(found)} files configure this run; give one of {names}")
    for path, config in found.items():
        return config, path.parent.resolve()
    raise BadInput(f"{run}: its run.yaml is neither in it nor above; give the run.yaml itself")


def recorded(journal: Journal, config: RunConfig) -> Iterator[tuple[DecisionRow, Observation]]:
    """Every decision that was a policy's, oldest first, with what was known when it was due."""
    sizes = observation_builder.planned_tokens(config)
    evaluations = observation_builder.evaluations(journal)
    states = {
        event.detail["decision"]: event.detail for event in queries.events(journal, "observed")
    }
    for decision in queries.decisions(journal):
        if decision.id not in states:
            continue
        state = states[decision.id]
        observation = observation_builder.observation(
            journal,
            config,
            sizes,
            status_of(_trainer_state(config, state)),
            scored=tuple(score for score in evaluations if score.step <= decision.step),
            before=decision.seq,
        )
        yield decision, observation.model_copy(update={"in_force": state["in_force"]})


def _trainer_state(config: RunConfig, state: Json) -> Observation:
    """A bare observation that says where the trainer was."""
    sources = {
        name: Source(unique_tokens=unique, drawn=state["drawn"][name], epochs=state["epochs"][name])
        for name, unique in state["unique"].items()
    }
    place = {key: state[key] for key in ("step", "tokens", "phase", "generation", "weights")}
    return Observation(run=config.run.id, budget=config.budget, sources=sources, **place)


def _replay(
    was: DecisionRow,
    observation: Observation,
    last_intervention: int | None,
    waiting: DecisionRow | None,
    policy: Policy,
    config: RunConfig,
) -> Json:
    """One decision as it was and as the policy would have made it.

    ``observed``: whether the journal's digest says that this is what the policy saw; not when the
    run file has changed since, or the policy failed before it had looked.
    """
    would = make_decision(
        answer_of(policy, observation),
        observation,
        config,
        status=status_of(observation),
        last_intervention=last_intervention,
        generation=observation.generation + 1,
        vetoes=vetoes(observation, config.guards.significance),
        standing=policy_standing(observation, config.guards.regression),
        waiting=waiting,
    )
    fields = ("verdict", "reason", "weights_proposed", "weights_after")
    apart = total_variation(was.weights_after, would.weights_after)
    same = observation_builder.digest(observation) == was.observation_digest
    return {
        "id": was.id,
        "step": was.step,
        "tokens": was.tokens,
        "policy": was.policy,
        "weights_before": dict(observation.weights),
        "was": {name: getattr(was, name) for name in fields},
        "would": {name: getattr(would, name) for name in fields}
        | {"plan": list(would.plan), "guards": [note.to_json() for note in would.guards]},
        "total_variation": apart,
        "agrees": apart < NOTHING and was.verdict == would.verdict,
        "observed": "same" if same else "different",
    }


def _summary(decisions: list[Json]) -> Json:
    """How often the two differ and by how much, and of how many the observation is the same."""
    apart = [decision["total_variation"] for decision in decisions]
    return {
        "decisions": len(decisions),
        "agree": sum(d["agrees"] for d in decisions),
        "mean_total_variation": sum(apart) / len(apart) if apart else 0.0,
        "would_intervene": sum(d["would"]["verdict"] == "intervene" for d in decisions),
        "intervened": sum(d["was"]["verdict"] == "intervene" for d in decisions),
        "same_observation": sum(d["observed"] == "same" for d in decisions),
    }


def backtest_table(report: Json) -> Table:
    """What was done, what would have been, how far apart, and what the guards would have said."""
    title = f"{text.clean(report['policy'])} on {text.clean(report['run'])}"
    columns = ("id", "tokens", "was", "would be", "apart", "would change", "why", "guards")
    table = views.table(title, columns)
    for decision in report["decisions"]:
        would = decision["would"]
        cells = (
            decision["id"],
            text.tokens(decision["tokens"]),
            decision["was"]["verdict"],
            would["verdict"],
            "same" if decision["agrees"] else f"{decision['total_variation']:.3f}",
            wording.moves(decision["weights_before"], would["weights_after"]),
            would["reason"],
            _guard_details(would["guards"]),
        )
        table.add_row(*map(views.cell, cells))
    return table


def _guard_details(notes: list[Json]) -> str:
    """The notes of the guards that did something."""
    details = [f"{n['guard']}: {n['detail']}" for n in notes if n["action"] != "passed"]
    return "; ".join(details) or "-"


def summary_lines(report: Json) -> list[str]:
    """The summary in two lines at most."""
    summary = report["summary"]
    lines = [
        f"{summary['agree']} of {summary['decisions']} decisions agree; "
        f"mean total variation {summary['mean_total_variation']:.3f}; "
        f"{summary['would_intervene']} interventions, the run had {summary['intervened']}"
    ]
    different = summary["decisions"] - summary["same_observation"]
    if different:
        lines.append(
            f"{different} observations aren't exactly what was seen then: run.yaml has changed "
            "since, or the policy failed before it had looked"
        )
    return lines

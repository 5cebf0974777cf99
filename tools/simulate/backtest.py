"""``mixloop backtest``: what another policy would have proposed at each decision of a recorded run.

Each observation is built again from the journal as it was then: the scores, decisions and orders up
to it, and the trainer's state, which is kept beside each decision. A journal that kept none has the
checkpoint's instead, from which the trainer had gone on a little. What the policy would have
changed is not carried on: the next observation is the recorded run's again.


A back-test for people: one row per decision, then what it comes to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common import text
from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller import views
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.core import NOTHING, make_decision, wording
from mixloop.controller.decisions import observation_builder
from mixloop.controller.journal import Journal, Row
from mixloop.controller.views import open_run
from mixloop.policies.evidence import vetoes
from mixloop.policies.interface import Observation, Policy, PolicyError, Source, load_policy
from mixloop.policies.mixture import total_variation

from .simulation import answer_of
from .virtual_run import status_of

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Recorded:
    """A recorded decision and what was known when it was due."""

    row: Row
    seen: Observation
    exact: bool
    last_intervention: int | None


def backtest(run: Path, ref: str, options: Mapping[str, Any] | None, base: Path) -> Json:
    """Replay a run's journal past a policy.

    Args:
        run: run.yaml, or a run folder whose run.yaml lies in it or just above.
        ref, options: the policy; None for the run's own options where it is the run's own policy.
        base: folder that a file reference is relative to.

    Returns:
        ``run``, ``policy``, ``decisions`` (:func:`entry` of each) and a ``summary``.

    Raises:
        BadInput: no such run, journal or policy.
    """
    config, home = run_config(run)
    _, journal = open_run(config.run.dir)
    if journal is None:
        raise BadInput(f"{run}: no controller has run here, so there is nothing to replay")
    if options is None:
        options = config.policy.options if ref == config.policy.use else {}
    base = home if ref == config.policy.use else base
    try:
        policy = load_policy(ref, options, base=base)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    chosen = config.policy.model_copy(update={"use": ref, "options": dict(options)})
    replayed = config.model_copy(update={"policy": chosen})
    found = [entry(one, policy, replayed) for one in recorded(journal, config)]
    return {"run": config.run.id, "policy": ref, "decisions": found, "summary": summary(found)}


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
    for place in (folder, *folder.parents[:2]):
        for path in sorted(place.glob("*.yaml")):
            try:
                config = load_config(path)
            except BadInput:
                continue  # some other YAML file
            if config.run.dir.resolve() == folder:
                return config, path.parent.resolve()
    raise BadInput(f"{run}: its run.yaml is neither in it nor above; give the run.yaml itself")


def recorded(journal: Journal, config: RunConfig) -> Iterator[Recorded]:
    """Every decision that was a policy's, oldest first."""
    sizes = observation_builder.planned_tokens(config)
    scored = observation_builder.evaluations(journal)
    states = {
        row["detail"]["decision"]: row["detail"]
        for row in journal.rows("SELECT detail FROM events WHERE kind = 'observed'")
    }
    rows = journal.rows("SELECT * FROM decisions WHERE asked_by = 'policy' ORDER BY seq")
    for row in rows:
        state = states.get(row["id"]) or _at_checkpoint(journal, row)
        if state is None:
            continue
        known = tuple(one for one in scored if one.step <= row["step"])
        status = status_of(_placed(config, sizes, state))
        seen = observation_builder.observation(
            journal, config, sizes, status, scored=known, before=row["seq"]
        )
        if "in_force" in state:
            seen = seen.model_copy(update={"in_force": state["in_force"]})
        last = _last_intervention(journal, row["seq"], seen.tokens)
        yield Recorded(row, seen, row["id"] in states, last)


def _at_checkpoint(journal: Journal, row: Row) -> Json | None:
    """The trainer's state at the checkpoint that was decided on; None when that is unknown too."""
    found = journal.row("SELECT * FROM checkpoints WHERE step = ?", row["step"])
    if found is None:
        return None
    return {
        "step": found["step"],
        "tokens": found["tokens"],
        "phase": found["phase"],
        "generation": row["against_generation"],
        "weights": row["weights_before"],
        "drawn": found["drawn"],
    }


def _placed(config: RunConfig, sizes: Mapping[str, int], state: Json) -> Observation:
    """A bare observation that says where the trainer was."""
    sources = {}
    for name in config.sources:
        drawn = round(state["drawn"].get(name, 0))
        unique = state.get("unique", {}).get(name, sizes[name])
        epochs = state.get("epochs", {}).get(name, drawn / unique)
        sources[name] = Source(unique_tokens=unique, drawn=drawn, epochs=epochs)
    place = {key: state[key] for key in ("step", "tokens", "phase", "generation", "weights")}
    return Observation(run=config.run.id, budget=config.budget, sources=sources, **place)


def _last_intervention(journal: Journal, before: int, tokens: int) -> int | None:
    found = journal.value(
        "SELECT MAX(o.applied_tokens) FROM orders o JOIN decisions d ON d.id = o.decision "
        "WHERE d.seq < ? AND o.applied_tokens <= ?",
        before,
        tokens,
    )
    return None if found is None else int(found)


def entry(one: Recorded, policy: Policy, config: RunConfig) -> Json:
    """One decision as it was and as the policy would have made it, past the guards of the run.

    ``observed``: ``same`` when the journal's digest says that this is what the policy saw,
    ``different`` when it says otherwise (the run file has changed since, or the journal kept no
    state: then ``approximate``).
    """
    made = make_decision(
        answer_of(policy, one.seen),
        one.seen,
        config,
        status=status_of(one.seen),
        last_intervention=one.last_intervention,
        generation=one.seen.generation + 1,
        vetoes=vetoes(one.seen, config.guards.significance),
    )
    was = {key: one.row[key] for key in ("verdict", "reason", "weights_proposed", "weights_after")}
    would = {
        "verdict": made.verdict,
        "reason": made.reason,
        "weights_proposed": made.weights_proposed,
        "weights_after": dict(made.weights_after),
        "plan": [[until, weights] for until, weights in made.plan],
        "guards": [note.to_json() for note in made.guards],
    }
    apart = total_variation(was["weights_after"], dict(made.weights_after))
    same = observation_builder.digest(one.seen) == one.row["observation_digest"]
    return {
        "id": one.row["id"],
        "step": one.row["step"],
        "tokens": one.row["tokens"],
        "policy": one.row["policy"],
        "weights_before": dict(one.seen.weights),
        "was": was,
        "would": would,
        "total_variation": apart,
        "agrees": apart < NOTHING and was["verdict"] == made.verdict,
        "observed": "same" if same else "different" if one.exact else "approximate",
    }


def summary(found: list[Json]) -> Json:
    """How often the two differ and by how much, and of how many the observation is the same."""
    moved = [one["total_variation"] for one in found]
    return {
        "decisions": len(found),
        "agree": sum(one["agrees"] for one in found),
        "mean_total_variation": sum(moved) / len(moved) if moved else 0.0,
        "would_intervene": sum(one["would"]["verdict"] == "intervene" for one in found),
        "intervened": sum(one["was"]["verdict"] == "intervene" for one in found),
        "same_observation": sum(one["observed"] == "same" for one in found),
    }


def backtest_table(report: Json) -> Table:
    """What was done, what would have been, how far apart, and what the guards would have said."""
    title = f"{text.clean(report['policy'])} on {text.clean(report['run'])}"
    columns = ("id", "tokens", "was", "would be", "apart", "would change", "why", "guards")
    made = views.table(title, columns)
    for one in report["decisions"]:
        would = one["would"]
        made.add_row(
            one["id"],
            text.tokens(one["tokens"]),
            views.cell(one["was"]["verdict"]),
            views.cell(would["verdict"]),
            "same" if one["agrees"] else f"{one['total_variation']:.3f}",
            views.cell(wording.moves(one["weights_before"], would["weights_after"])),
            views.cell(would["reason"]),
            views.cell(guards_said(would["guards"])),
        )
    return made


def guards_said(notes: list[Json]) -> str:
    """The notes of the guards that did something."""
    told = [f"{n['guard']}: {n['detail']}" for n in notes if n["action"] != "passed"]
    return "; ".join(told) or "-"


def summary_lines(report: Json) -> list[str]:
    """The summary in two lines at most."""
    found = report["summary"]
    lines = [
        f"{found['agree']} of {found['decisions']} decisions agree; "
        f"mean total variation {found['mean_total_variation']:.3f}; "
        f"{found['would_intervene']} interventions, the run had {found['intervened']}"
    ]
    other = found["decisions"] - found["same_observation"]
    if other:
        lines.append(
            f"{other} observations aren't exactly what was seen then: the trainer's state between "
            "checkpoint and decision wasn't kept, or run.yaml has changed since"
        )
    return lines

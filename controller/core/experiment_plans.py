"""Experiments as decisions ask for them: made, or refused and why. Pure."""

from __future__ import annotations

from dataclasses import replace

from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.controller.config import RunConfig
from mixloop.policies.guards import NONE_ALLOWED, GuardNote, bound_experiment, planned_cost
from mixloop.policies.interface import Experiment, Observation, PolicyError, jsonable

from .decision_record import DecisionRecord, ExperimentRecord
from .guard_context import step_tokens


def with_experiment(
    asked: Experiment | None,
    unchanged: DecisionRecord,
    seen: Observation,
    config: RunConfig,
    learning_rate: float | None,
) -> DecisionRecord:
    """A decision that keeps the mixture, with the experiment as it may be made, or why it isn't.

    Args:
        asked: What the policy asks for; None: nothing, and the decision stays as it is.
        unchanged: The decision without it.
        seen: What the policy had seen.
        config: The run.
        learning_rate: The trainer's, for another trainer's branches.
    """
    if asked is None:
        return unchanged
    scored, refused = seen.evaluations[-1], None
    try:
        asked = _bounded(asked, seen, config)
    except PolicyError as error:
        refused = str(error)
    detail = f"{len(asked.branches)} branches and a control of {format_tokens(asked.tokens)} tokens"
    note = GuardNote("experiments", "blocked" if refused else "passed", refused or detail)
    given: Json = {"weights": dict(unchanged.weights_before), "phase": scored.phase}
    given["learning_rate"] = learning_rate
    return replace(
        unchanged,
        verdict="refused" if refused else "experiment",
        reason=f"{asked.reason}; refused: {refused}" if refused else f"{asked.reason}; {detail}",
        guards=(*unchanged.guards, note),
        experiment=ExperimentRecord(
            jsonable(asked.model_dump(exclude={"kind", "evidence"}) | given),
            planned_cost(asked),
            refused,
        ),
    )


def _bounded(asked: Experiment, seen: Observation, config: RunConfig) -> Experiment:
    """The experiment as it may be made.

    Raises:
        PolicyError: why it may not.
    """
    scored = seen.evaluations[-1]
    if not config.experiment_tokens:
        raise PolicyError(NONE_ALLOWED)
    if before := next((e for e in seen.experiments if not e.ended), None):
        raise PolicyError(f"{before.id} has not ended: one at a time")
    if failed := [e for e in seen.experiments if e.state == "failed" and e.step == scored.step]:
        raise PolicyError(f"{failed[-1].id} from this checkpoint failed: not before the next")
    return bound_experiment(
        asked,
        seen.sources,
        left=seen.experiment_tokens,
        step_tokens=step_tokens(config, scored.tokens),
    )

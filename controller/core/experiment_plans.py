"""Experiments as decisions ask for them, and receipts of interventions. Pure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.controller.config import RunConfig
from mixloop.policies.guards import (
    NONE_ALLOWED,
    GuardNote,
    bound_experiment,
    bound_receipt,
    planned_cost,
)
from mixloop.policies.interface import Experiment, Observation, PolicyError, jsonable
from mixloop.policies.mixture import REACHED, total_variation

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
    count = len(asked.branches)
    detail = (
        f"{count} branch{'es' * (count != 1)} and a control of {format_tokens(asked.tokens)} tokens"
    )
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
            scored.step,
            scored.tokens,
            # a refused one takes nothing, and may have asked for more than a journal can count
            0 if refused else planned_cost(asked),
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


def with_receipt(
    intervention: DecisionRecord,
    seen: Observation,
    config: RunConfig,
    learning_rate: float | None,
) -> DecisionRecord:
    """A change of the policy's or of a person's with the twin that will go on without it.

    Or with the reason why none will. It is planned with the decision, so that the budget knows of
    it, and begins once the order is in force. One that is never to be in force takes nothing.
    """
    if not config.experiments.receipts:
        return intervention
    before = intervention.weights_before
    try:
        if total_variation(dict(before), dict(intervention.weights_after)) <= REACHED:
            raise PolicyError("the mixture stays for now, as a twin's would")
        tokens = _receipt_tokens(seen)
        asked = bound_receipt(before, tokens=tokens, left=seen.experiment_tokens)
    except PolicyError as error:
        note = GuardNote("experiments", "flagged", f"no receipt: {error}")
        return replace(intervention, guards=(*intervention.guards, note))
    scored, told = seen.evaluations[-1], f"a receipt: a twin of {format_tokens(tokens)} tokens"
    note = GuardNote("experiments", "passed", told)
    given: Json = {"weights": dict(before), "phase": scored.phase}
    given |= {"learning_rate": learning_rate, "receipt": True}
    return replace(
        intervention,
        guards=(*intervention.guards, note),
        experiment=ExperimentRecord(
            jsonable(asked.model_dump(exclude={"kind", "evidence"}) | given),
            scored.step,
            scored.tokens,
            tokens,
        ),
    )


def _receipt_tokens(seen: Observation) -> int:
    """Tokens of a twin that is scored beside the run's next two evaluations.

    Raises:
        PolicyError: it can't be.
    """
    if before := next((e for e in seen.receipts if not e.ended), None):
        raise PolicyError(f"{before.id} has not ended: one at a time")
    places = [evaluation.tokens for evaluation in seen.evaluations]
    every = min((late - early for early, late in pairwise(places)), default=0)
    if not every:
        raise PolicyError("before the second evaluation nothing tells how far apart they are")
    # it may begin as late as the next evaluation, and has to end before the training does
    last = places[-1] + 3 * every
    if last >= seen.budget:
        raise PolicyError("training ends before a twin could")
    if len(seen.plan) > 1 and seen.plan[0][0] < last:
        raise PolicyError("the mixture before it would change by its own plan, a twin's can't")
    return 2 * every

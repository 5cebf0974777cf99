"""A decision between the daemon and the policy's child: who reads what, and what they tell.

The daemon lives for months and holds only where the run stands (:func:`near`). The history, which
grows with the run, is read by the child from the journal (:func:`observed`), together with all that
follows from it: the steering metrics, the vetoes, whether the run has become worse,
and the observation's digest. A decision waits for what the child imports, so what only the daemon
needs is imported where it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import one_line
from mixloop.common.types import Json
from mixloop.controller.core import Steering, steer_all
from mixloop.controller.journal import Journal, JournalError, queries
from mixloop.policies.evidence import (
    PolicyStanding,
    RegressionSettings,
    Veto,
    policy_standing,
    vetoes,
)
from mixloop.policies.interface import Observation

from . import experiment_evidence, observation_builder

if TYPE_CHECKING:
    from mixloop.common.children import Child
    from mixloop.controller.config import RunConfig
    from mixloop.controller.core import Answer

# the child adds them
HISTORY = frozenset({"evaluations", "decisions", "experiments", "receipts", "steering"})
LONGEST_DIGEST = 200  # characters
JOURNAL_TIMEOUT = 30.0  # seconds that the child waits for a journal that is being written


class UnreadError(Exception):
    """The history could not be read; the same decision is tried again."""


@dataclass(frozen=True)
class Observed:
    """What the child says of the observation before it asks the policy."""

    digest: str
    steering: dict[str, Steering]
    vetoes: tuple[Veto, ...]
    standing: PolicyStanding


def near(
    journal: Journal,
    config: RunConfig,
    sizes: Mapping[str, int],
    status: Any,
    step: int,
    known: int = 0,
) -> Observation:
    """Where the run stands when the decision on the checkpoint at ``step`` is due.

    It has no more evaluations than the guards look at, and of experiments and receipts, of which
    ``known`` have ended, no items.
    """
    from mixloop.controller.core import RECENT

    scored = observation_builder.evaluations(journal, until=step, newest=RECENT)
    now = observation_builder.standing(journal, config, sizes, status, scored=scored)
    made = experiment_evidence.experiments(journal, before=queries.ALL, known=known)
    bare = [experiment_evidence.without_items(one) for one in made]
    return now.model_copy(
        update={
            "experiments": tuple(one for one in bare if not one.receipt),
            "receipts": tuple(one for one in bare if one.receipt),
        }
    )


def history_request(journal: Journal, config: RunConfig, seen: Observation, known: int = 0) -> Json:
    """What the child has to know to make the whole observation of this one.

    What is scored, decided or ended while the child starts isn't part of it; of experiments the
    first ``known`` have ended.
    """
    return {
        "journal": str(journal.path),
        "standing": seen.model_dump_json(exclude=set(HISTORY)),
        "until": seen.evaluations[-1].step,
        "before": queries.newest_decision_number(journal) + 1,
        "known": known,
        "benchmarks": list(config.evals.benchmarks),
        "rule": config.evals.steering,
        "significance": config.guards.significance,
        "regression": config.guards.model_dump(mode="json")["regression"],
    }


def observed(request: Json) -> tuple[Observation, Json]:
    """The whole observation, and the message that becomes :class:`Observed`.

    Args:
        request: :func:`history_request`.

    Raises:
        UnreadError: when the journal can't be read.
    """
    try:
        path = Path(request["journal"])
        with closing(Journal(path, read_only=True, timeout=JOURNAL_TIMEOUT)) as journal:
            scored = observation_builder.evaluations(journal, until=request["until"])
            decisions = observation_builder.past_decisions(journal, request["before"])
            made = experiment_evidence.experiments(
                journal, before=request["before"], known=request["known"]
            )
    except (JournalError, OSError) as error:
        raise UnreadError(str(error)) from error
    standing = Observation.model_validate_json(request["standing"])
    steers = steer_all(request["benchmarks"], scored, request["rule"])
    seen = observation_builder.with_history(standing, steers, scored, decisions, made)
    message = {
        "kind": "observed",
        "digest": observation_builder.digest(seen),
        "steering": {name: asdict(steering) for name, steering in steers.items()},
        "standing": asdict(policy_standing(seen, _regression(request))),
        "vetoes": [asdict(veto) for veto in vetoes(seen, request["significance"])],
    }
    return seen, message


def _regression(request: Json) -> RegressionSettings | None:
    settings = request["regression"]
    return None if settings is None else RegressionSettings.model_validate(settings)


def read_observed(message: Mapping[str, Any]) -> Observed:
    """The message of :func:`observed`, read back."""
    return Observed(
        message["digest"],
        {name: Steering(**steering) for name, steering in message["steering"].items()},
        tuple(Veto(**veto) for veto in message["vetoes"]),
        PolicyStanding(**message["standing"]),
    )


def read_reply(child: Child) -> Answer:
    """What a policy child that has ended decided: :func:`read_answer` with each field looked at.

    The policy has that process to itself and may have it say anything.
    """
    from mixloop.controller.core import Answer
    from mixloop.policies.interface import PolicyError, reply_from_json, reply_to_json

    answer = read_answer(child)
    try:
        if answer.kind in ("proposal", "hold", "experiment"):
            reply = reply_from_json(json.dumps({**answer.payload, "kind": answer.kind}))
            payload = json.loads(reply_to_json(reply))
            return replace(answer, kind=payload.pop("kind"), payload=payload)
        if answer.kind == "unread" and answer.observed is not None:
            raise PolicyError("it says that the history can't be read, which it has been given")
        return replace(answer, payload={"reason": str(answer.payload["reason"])})
    except (PolicyError, KeyError) as error:
        return Answer("failed", {"reason": one_line(error)}, answer.digest, answer.observed)


def read_answer(child: Child) -> Answer:
    """The answer of a policy child that has ended; anything strange is ``failed``."""
    from mixloop.controller.core import KINDS, Answer

    messages = child.messages()
    observed = messages.pop(0) if messages and messages[0].get("kind") == "observed" else None
    if child.killed is not None:
        return Answer("failed", {"reason": child.killed}, observed=observed)
    if len(messages) != 1 or messages[0].get("kind") not in KINDS:
        reason = f"no answer (exit status {child.exit_code})"
        if child.strange is not None:
            reason = f"what it said is no answer: {child.strange}"
        return Answer("failed", {"reason": reason}, observed=observed)
    kind, payload, digest = (messages[0].get(key) for key in ("kind", "payload", "digest"))
    if not isinstance(payload, dict) or len(str(digest)) > LONGEST_DIGEST:
        return Answer("failed", {"reason": "what it said is no answer"}, observed=observed)
    return Answer(str(kind), payload, None if digest is None else str(digest), observed)

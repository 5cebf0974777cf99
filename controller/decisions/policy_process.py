"""One policy decision in a process of its own: request in on stdin, answer out on stdout.

Before a decision of a run it reads the history from the journal and says what it observed.

A policy is the user's code. Whatever it does (raise, hang, print, eat memory, call ``exit``), it
costs this one decision and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.children import wait_for_start

if TYPE_CHECKING:
    from collections.abc import Callable


def decide(request: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load the policy, ask it, and say what it answered as plain JSON (``children.Answer``).

    Args:
        request: ``ref``, ``options``, ``base`` (folder for ``./file.py:Class``), and ``history``
            (:func:`mixloop.controller.decisions.history_request`) or a whole ``observation``;
            or, to find mistakes before a run starts, ``check`` with ``sources`` and
            ``benchmarks``.
        say: is given what was observed, before the policy is loaded.
    """
    from mixloop.policies.interface import (
        Observation,
        PolicyError,
        load_policy,
        policy_digest,
        raised,
        reply_to_json,
    )

    seen = None
    if "history" in request:
        from .policy_request import UnreadError, observed

        try:
            seen, message = observed(request["history"])
        except UnreadError as error:
            return {"kind": "unread", "payload": {"reason": str(error)}}
        say(message)
    elif "observation" in request:
        seen = Observation.model_validate(request["observation"])
    base = Path(request["base"])
    digest = policy_digest(request["ref"], base)
    policy = load_policy(request["ref"], request["options"], base=base)
    try:
        if seen is None:
            needs = _checked(policy, request)
            return {"kind": "hold", "payload": {"needs": needs}, "digest": digest}
        answer = policy.decide(seen)
    except PolicyError:
        raise
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        raise PolicyError(raised(error, type(policy))) from error
    payload = json.loads(reply_to_json(answer))
    return {"kind": payload.pop("kind"), "payload": payload, "digest": digest}


def _checked(policy: Any, request: dict[str, Any]) -> dict[str, int]:
    """Let the policy check names; the evaluations it needs, where it tells."""
    from mixloop.policies.interface import Checkable, Learning

    if isinstance(policy, Checkable):
        policy.check(request["sources"], request["benchmarks"])
    if not isinstance(policy, Learning):
        return {}
    return dict(policy.evaluations_needed(request["sources"], request["benchmarks"]))


def _import_ahead() -> None:
    """What every decision needs, half a second's worth of imports."""
    import scipy.special  # noqa: F401 - of the standard errors

    from . import policy_request  # noqa: F401


def main() -> None:
    """Entry of ``python -m mixloop.controller.decisions.policy_process``."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a policy that prints must not garble the answer
    wait_for_start(_import_ahead)
    request = json.load(sys.stdin)
    limit = request["memory"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from mixloop.policies.interface import PolicyError

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        message = decide(request, say)
        text = json.dumps(message, allow_nan=False)
    except BaseException as error:
        if not isinstance(error, Exception | SystemExit):
            raise
        lines = str(error).splitlines() or [""]
        ours = isinstance(error, PolicyError)  # its line is complete as it is
        reason = (lines[0] if ours else f"{type(error).__name__}: {lines[0]}")[:500]
        # a message may hold half of a surrogate pair (a file name that is no UTF-8)
        reason = reason.encode("utf-8", "replace").decode()
        text = json.dumps({"kind": "failed", "payload": {"reason": reason}})
        traceback.print_exc()
    channel.write(text + "\n")
    channel.flush()


if __name__ == "__main__":
    main()

"""One policy decision in a process of its own: observation in on stdin, answer out on stdout.

A policy is the user's code. Whatever it does (raise, hang, print, eat memory, call ``exit``), it
costs this one decision and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from mixloop.controller.children import die_with_parent


def decide(request: dict[str, Any]) -> dict[str, Any]:
    """Load the policy, ask it, and say what it answered as plain JSON.

    ``request``: ``ref``, ``options``, ``base`` (folder for ``./file.py:Class``), ``observation``;
    or, to find mistakes before a run starts, ``check`` with ``sources`` and ``benchmarks``.
    """
    from mixloop.policies import (
        Checkable,
        Observation,
        load_policy,
        policy_digest,
        reply_to_json,
    )

    base = Path(request["base"])
    digest = policy_digest(request["ref"], base)
    policy = load_policy(request["ref"], request["options"], base=base)
    if request.get("check"):
        if isinstance(policy, Checkable):
            policy.check(request["sources"], request["benchmarks"])
        return {"kind": "hold", "payload": {}, "digest": digest}
    answer = policy.decide(Observation.model_validate(request["observation"]))
    payload = json.loads(reply_to_json(answer))
    return {"kind": payload.pop("kind"), "payload": payload, "digest": digest}


def main() -> None:
    """Entry of ``python -m mixloop.controller.policy_child``."""
    die_with_parent()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a policy that prints must not garble the answer
    request = json.load(sys.stdin)
    limit = request["memory"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from mixloop.policies import PolicyError

    try:
        message = decide(request)
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
        import traceback

        traceback.print_exc()
    channel.write(text + "\n")
    channel.flush()


if __name__ == "__main__":
    main()

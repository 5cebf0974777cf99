"""Child processes played in this one: the real policy child's and drain's work, and their ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mixloop.controller.decisions import policy_process, policy_request
from mixloop.controller.tracking import drain_process
from mixloop.policies.interface import PolicyError

from .here import sim
from .tracker import Killed

Json = dict[str, Any]

NONSENSE: tuple[Json, ...] = (
    {"weights": {"web": 2.0, "code": -1.0}, "reason": "more than all"},
    {"weights": {"moon": 1.0}, "reason": "no such source"},
    {"weights": {}, "reason": "nothing"},
    {"weights": {"web": 1.0}, "reason": "all of one", "plan": [[1, {"web": 1.0}]]},
    {"weights": {"web": 0.3, "code": 0.3, "maths": 0.3}, "reason": "not quite one"},
    {"weights": {"web": float("nan"), "code": 0.5, "maths": 0.5}, "reason": "no number"},
)


ABSURD: tuple[Json, ...] = (
    {"branches": [{"moon": 1.0}], "tokens": 400},
    {"branches": [{"web": 0.3, "code": 0.3}], "tokens": 400},
    {"branches": [{"web": -1.0, "code": 2.0}], "tokens": 400},
    {"branches": [], "tokens": 400},
    {"branches": [{"web": 1.0}], "tokens": 0},
    {"branches": [{"web": 1.0}], "tokens": "many"},
    {"branches": [{"web": 1.0}] * 200, "tokens": 80},
    {"branches": [{"web": float("nan")}], "tokens": 80},
    {"branches": [{"web": 1.0}], "tokens": 80, "merge": {"prior": {"moon": 1.0}}},
    {"branches": [{"web": 1.0}], "tokens": 10**17},
    {"tokens": 80},
)


BLOATED: tuple[Json, ...] = (
    {"kind": "hold", "payload": {"reason": "R" * 3_000_000, "evidence": {"e": "E" * 3_000_000}}},
    {"kind": "hold", "payload": {"reason": "much", "evidence": {"a": 1, "e": ["E" * 99] * 20_000}}},
    {"kind": "hold", "payload": [1]},
    {"kind": "hold"},
    {"kind": "hold", "payload": {"evidence": {}}},
    {"kind": "hold", "payload": {"reason": 5}},
    {"kind": "proposal", "payload": {"weights": [1], "reason": "a list"}},
    {"kind": "hold", "payload": {"reason": "x"}, "digest": "d" * 3_000_000},
    {"kind": "unread", "payload": {"reason": "it was read"}},
    {"kind": "failed", "payload": {"reason": "F" * 3_000_000}},
)


class NoWaitingChild:
    """Takes the place of :class:`mixloop.common.process.WaitingChild`: it has ended already."""

    def __init__(self, module: str, *, log: Any, clock: Any) -> None:
        pass

    def give(self, stdin: str, timeout: float) -> bool:
        return False

    def close(self) -> None:
        pass


class Child:
    """Takes the place of :class:`mixloop.common.process.Child`."""

    def __init__(
        self,
        module: str,
        *,
        argument: str | None = None,
        stdin: str | None = None,
        log: Any,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._clock, self._deadline, self._timeout = clock, clock() + timeout, timeout
        self.killed: str | None = None
        self.strange: str | None = None
        self.exit_code: int | None = 0
        self._said: list[Json] = []
        self._polls = 0
        self._stuck = False
        self._closed = False
        if module.endswith("policy_process"):
            self._decide(json.loads(stdin or ""))
        else:
            self._request = json.loads(argument or "")
            self._begun = False
            self._late = sim().rng.random() < 0.5
            if not self._late:
                self._drain()
            return
        self._begun = True

    @property
    def running(self) -> bool:
        if not self._begun:
            self._drain()
        if self.killed is not None or self._closed:
            return False
        if self._stuck and sim().faults.on:
            if self._clock() < self._deadline:
                return True
            self.killed = f"no answer within {self._timeout:g} seconds"
            return False
        self._polls += 1
        return self._polls < 2

    def messages(self) -> list[Json]:
        said, self._said = self._said, []
        return said

    def kill(self) -> None:
        self._closed = True

    def close(self) -> None:
        self._closed = True

    # -- a policy ------------------------------------------------------

    def _decide(self, request: Json) -> None:
        faults = sim().faults
        if faults.draw("policy-hangs"):
            self._stuck = True
            return
        if faults.draw("history-unread"):
            self._said = [{"kind": "unread", "payload": {"reason": "the journal can't be read"}}]
            return
        if faults.draw("policy-garbage"):
            rng = faults.rng
            self.exit_code = rng.choice([0, 1, -9])
            self._said = rng.choice([[], [{"kind": "?"}], [{"kind": "hold"}, {"kind": "hold"}]])
            if sim().seed % 4 == 1:
                self._bloat(request)
            return
        if faults.draw("policy-nonsense", 2):
            _, observed = policy_request.observed(request["history"])
            wanted = faults.rng.choice(NONSENSE)
            payload = {"plan": [], "evidence": {}, "declared": False, **wanted}
            self._said = [observed, {"kind": "proposal", "payload": payload, "digest": "sha256:0"}]
            return
        if faults.draw("policy-absurd", 2):
            _, observed = policy_request.observed(request["history"])
            payload = {"reason": "absurd", "evidence": {}, **faults.rng.choice(ABSURD)}
            self._said = [observed, {"kind": "experiment", "payload": payload, "digest": "x"}]
            return
        try:
            if faults.draw("policy-raises"):
                raise ZeroDivisionError("a policy's own mistake")
            message = policy_process.decide(request, self._said.append)
            self._said += [json.loads(json.dumps(message, allow_nan=False))]
        except Exception as error:
            ours = isinstance(error, PolicyError)
            text = str(error).splitlines()[0] if str(error) else ""
            reason = text if ours else f"{type(error).__name__}: {text}"
            self._said += [{"kind": "failed", "payload": {"reason": reason}}]

    def _bloat(self, request: Json) -> None:
        """The limits of the pipe are tested with real children; this is what comes through it."""
        sim().faults.happened("policy-bloats")
        _, observed = policy_request.observed(request["history"])
        said = sim().noise("bloat", observed["digest"]).choice([None, *BLOATED])
        if said is None:
            self.killed = "it said more than 8 MiB"
        self._said = [observed] if said is None else [observed, said]

    # -- the drain ------------------------------------------------------

    def _drain(self) -> None:
        self._begun = True
        try:
            self.exit_code = drain_process.drain(self._request, self._said.append)
        except Killed:
            self._stuck = True  # whatever it still did is done, what it had said is said

"""The controller's dealings with operators: requests into the journal, approvals that end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mixloop.common.files import NotRegularError, read_regular
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Status, requests
from mixloop.controller.config import RunConfig
from mixloop.controller.core import RequestContext, RunState, reply_to, scores
from mixloop.controller.decisions import experiment_evidence, near, observation_builder
from mixloop.controller.journal import Journal, queries, records
from mixloop.policies.evidence import held_since

from .mixture_file import MixtureFile, pinned_shares
from .takeover import OwnedRun

_UNNUMBERED = frozenset({"pause", "resume", "unpin", "reject"})  # what makes no order
READS = 8  # of a request that can't be read, about two minutes, before it is refused


def next_request(paths: RunPaths, status: Status | None) -> Path | None:
    """The oldest file that can be dealt with now.

    What changes the mixture waits for a heartbeat.
    """
    for path in requests.waiting(paths.requests):
        if status is not None or not _needs_trainer(path):
            return path
    return None


def _needs_trainer(path: Path) -> bool:
    try:
        data = read_regular(path, requests.LARGEST).data  # a FIFO would be waited for, for ever
        return bool(json.loads(data)["verb"] in requests.NEEDS_TRAINER)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # it is refused when it is taken


def expired_approval(journal: Journal, config: RunConfig, status: Status | None) -> str:
    """The id of a decision whose approval was waited for in vain; empty for none."""
    if status is None:
        return ""
    timeout = config.approval.timeout
    late = (
        decision.id
        for decision, _ in queries.waiting_approvals(journal)
        if status.finished or (timeout is not None and status.tokens - decision.tokens > timeout)
    )
    return next(late, "")


class OperatorInbox:
    """Requests and approvals of one run."""

    def __init__(self, run: OwnedRun, mixture_file: MixtureFile) -> None:
        self._run = run
        self._mixture_file = mixture_file
        self._failed_reads: Counter[str] = Counter()

    def expire(self, state: RunState) -> None:
        """Nobody answered: the mixture is held."""
        why = "nobody approved it in time; the mixture is held"
        records.resolve(self._run.journal, state.expired, "expired", reason=why)
        self._run.say(f"{state.expired} expired: {why}")

    def handle(self, state: RunState) -> None:
        """Deal with one request file.

        A crash between journal and rename takes the file again and finds its id there.
        """
        path = state.request
        assert path is not None
        try:
            request = requests.read(path, self._owners(), to=self._addressee(), key=self._run.key)
        except FileNotFoundError:
            return
        except (requests.RequestError, OSError) as error:
            if self._may_pass(path.name, error):
                raise  # what a person asked for must not be refused for a moment's trouble
            self._run.journal.event("request-refused", file=path.name, reason=str(error))
            requests.put_away(path, "refused")
            self._run.say(f"{path.name} refused: {error}")
            return
        row = queries.request(self._run.journal, request.id)
        if row is None and self._run.key is not None and request.verb in _UNNUMBERED:
            # the trainer hears of it by the order that is published again: a journal that was put
            # back to before this request is told by that, and its replay refused
            self._run.journal.raise_fence(self._run.journal.fence or 0)
        answer = self._record(request, state) if row is None else row.answer["text"]
        requests.put_away(path, "taken")
        self._run.say(f"{request.verb} by {request.by}: {answer}")

    def _may_pass(self, name: str, error: Exception) -> bool:
        """Whether a file that can't be read now (a stale handle, say) is worth another look."""
        if isinstance(error, requests.RequestError | NotRegularError):
            return False
        self._failed_reads[name] += 1
        return self._failed_reads[name] < READS

    def _addressee(self) -> requests.Addressee:
        journal = self._run.journal
        uid, since = queries.uid(journal) or "", queries.requests_since(journal)
        return requests.Addressee(self._run.config.run.id, uid, since)

    def _owners(self) -> frozenset[int]:
        owner = self._run.paths.dir.stat().st_uid
        also = self._run.config.trainer.accept_uid
        return frozenset({owner} if also is None else {owner, also})

    def _record(self, request: requests.Request, state: RunState) -> str:
        """Answer a request and journal all that it does. Returns the answer."""
        outcome = reply_to(request, self._context(request, state))
        name = records.operated(self._run.journal, request, outcome, scores=self._scores())
        return outcome.text if name is None else f"{outcome.text} ({name})"

    def _scores(self) -> Json:
        scored = observation_builder.newest_evaluation(self._run.journal)
        return scores(scored) if scored is not None else {}

    def _held(self) -> str:
        if self._run.config.guards.regression is None:
            return ""
        journal = self._run.journal
        made = experiment_evidence.experiments(journal, before=queries.ALL, known=queries.ALL)
        tried = [one for one in made if not one.receipt]
        return held_since(observation_builder.past_decisions(journal), tried)

    def _context(self, request: requests.Request, state: RunState) -> RequestContext:
        run, journal, status = self._run, self._run.journal, state.status
        observation = None
        if status is not None:
            observation = near(journal, run.config, run.sizes, status, queries.ALL, queries.ALL)
        asked, _ = self._mixture_file.asked_mixture(status.tokens if status is not None else 0)
        approval = queries.approval(journal, request.decision)
        return RequestContext(
            config=run.config,
            status=status,
            observation=observation,
            last_intervention=queries.last_applied_tokens(journal),
            generation=self._mixture_file.next_generation(status),
            newest=state.asked or 0,
            asked=asked,
            pins=pinned_shares(journal, run.config),
            paused=state.paused,
            decision=queries.decision(journal, request.decision),
            approval=approval.state if approval is not None else "",
            held=self._held() if request.verb == "resume" else "",
            trusted_since=queries.requests_since(journal),
        )

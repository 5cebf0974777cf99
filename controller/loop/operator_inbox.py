"""The controller's dealings with operators: requests into the journal, approvals that end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from mixloop.common.files import NotRegularError, read_regular
from mixloop.common.types import Json
from mixloop.contract import RunPaths, Status, requests
from mixloop.controller.config import RunConfig
from mixloop.controller.core import RequestContext, RunState, reply_to, scores
from mixloop.controller.decisions import near, observation_builder
from mixloop.controller.journal import Journal, Row, records

from .mixture_file import MixtureFile, last_applied_tokens, pinned_shares

_NEVER = 2**62
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


def expired_approval(journal: Journal, config: RunConfig, status: Status | None) -> Row | None:
    """A decision whose approval was waited for in vain."""
    row = journal.row(
        "SELECT d.*, a.state FROM approvals a JOIN decisions d ON d.id = a.decision "
        "WHERE a.state = 'waiting' ORDER BY d.seq LIMIT 1"
    )
    if row is None or status is None:
        return None
    timeout = config.approval.timeout
    late = timeout is not None and status.tokens - row["tokens"] > timeout
    return row if late or status.finished else None


class OperatorInbox:
    """Requests and approvals of one run.

    Args:
        config: The run.
        paths: Its files.
        journal: Its journal, claimed.
        mixture_file: Says which number an order may have.
        sizes: Unique tokens by source.
        initial: The mixture before any order.
        say: Receives one line per thing that happened.
        key: What requests must be signed with; None: nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        paths: RunPaths,
        journal: Journal,
        mixture_file: MixtureFile,
        sizes: Mapping[str, int],
        initial: Mapping[str, float],
        say: Callable[[str], None],
        key: bytes | None = None,
    ) -> None:
        self._config = config
        self._paths = paths
        self._journal = journal
        self._mixture_file = mixture_file
        self._sizes = sizes
        self._initial = initial
        self._say = say
        self._key = key
        self._failed_reads: Counter[str] = Counter()

    def expire(self, state: RunState) -> None:
        """Nobody answered: the mixture is held."""
        assert state.expired is not None
        why = "nobody approved it in time; the mixture is held"
        records.resolve(self._journal, state.expired["id"], "expired", reason=why)
        self._say(f"{state.expired['id']} expired: {why}")

    def handle(self, state: RunState) -> None:
        """Deal with one request file.

        A crash between journal and rename takes the file again and finds its id there.
        """
        path = state.request
        assert path is not None
        try:
            request = requests.read(path, self._owners(), run=self._config.run.id, key=self._key)
        except FileNotFoundError:
            return
        except (requests.RequestError, OSError) as error:
            if self._may_pass(path.name, error):
                raise  # what a person asked for must not be refused for a moment's trouble
            self._journal.event("request-refused", file=path.name, reason=str(error))
            requests.put_away(path, "refused")
            self._say(f"{path.name} refused: {error}")
            return
        row = self._journal.row("SELECT answer FROM requests WHERE id = ?", request.id)
        if row is not None:  # an earlier controller died before it moved the file
            answer = json.loads(row["answer"])["text"]
        else:
            answer = self._record(request, state)
        requests.put_away(path, "taken")
        self._say(f"{request.verb} by {request.by}: {answer}")

    def _may_pass(self, name: str, error: Exception) -> bool:
        """Whether a file that can't be read now (a stale handle, say) is worth another look."""
        if isinstance(error, requests.RequestError | NotRegularError):
            return False
        self._failed_reads[name] += 1
        return self._failed_reads[name] < READS

    def _owners(self) -> frozenset[int]:
        owner = self._paths.dir.stat().st_uid
        also = self._config.trainer.accept_uid
        return frozenset({owner} if also is None else {owner, also})

    def _record(self, request: requests.Request, state: RunState) -> str:
        """Answer a request and journal all that it does. Returns the answer."""
        outcome = reply_to(request, self._context(request, state))
        decision = outcome.made
        name = records.operated(
            self._journal,
            request,
            outcome,
            None if decision is None else decision.fields,
            None if decision is None else decision.order,
            scores=self._scores(),
        )
        return outcome.text if name is None else f"{outcome.text} ({name})"

    def _scores(self) -> Json:
        scored = observation_builder.newest_evaluation(self._journal)
        return scores(scored) if scored is not None else {}

    def _context(self, request: requests.Request, state: RunState) -> RequestContext:
        journal, status = self._journal, state.status
        decision = approval = None
        if request.decision:
            decision = journal.row("SELECT * FROM decisions WHERE id = ?", request.decision)
            approval = journal.row("SELECT * FROM approvals WHERE decision = ?", request.decision)
        tokens = status.tokens if status is not None else 0
        asked, _ = self._mixture_file.asked_mixture(state.asked, self._initial, tokens)
        seen = None
        if status is not None:
            seen = near(journal, self._config, self._sizes, status, _NEVER)
        return RequestContext(
            seen=seen,  # type: ignore[arg-type]  # None only for what doesn't look at it
            config=self._config,
            status=status,
            last_intervention=last_applied_tokens(journal),
            generation=self._mixture_file.next_generation(status),
            asked=asked,
            pins=pinned_shares(journal, self._config),
            paused=state.paused,
            decision=decision,
            approval=approval,
            newest=state.asked["generation"] if state.asked is not None else 0,
        )

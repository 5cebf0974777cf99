"""The controller's dealings with operators: requests into the journal, approvals that end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mixloop.common.files import NotRegularError, read_regular
from mixloop.common.types import Json
from mixloop.contract import RunPaths, requests
from mixloop.controller.config import RunConfig
from mixloop.controller.core import RequestContext, RequestOutcome, reply_to, scores
from mixloop.controller.decisions import near, observation_builder
from mixloop.controller.journal import Journal, Row, queries, records

from .observe import RunObserver

_NEVER = 2**62
READS = 8  # of a request that can't be read, about two minutes, before it is refused


class OperatorInbox:
    """Requests and approvals of one run.

    Args:
        sizes: unique tokens by source.
        initial: the mixture before any order.
        key: what requests must be signed with; None: nothing.
    """

    def __init__(
        self,
        paths: RunPaths,
        journal: Journal,
        config: RunConfig,
        eyes: RunObserver,
        sizes: Mapping[str, int],
        initial: Mapping[str, float],
        key: bytes | None = None,
    ) -> None:
        self._key = key
        self._paths = paths
        self._journal = journal
        self._config = config
        self._eyes = eyes
        self._sizes = sizes
        self._initial = initial
        self._unread: Counter[str] = Counter()

    # -- looking -----------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether an operator has paused decisions."""
        return queries.paused(self._journal)

    @property
    def pins(self) -> dict[str, float]:
        """Shares that are held fixed, of sources that the run still has."""
        return {n: w for n, w in queries.pins(self._journal).items() if n in self._config.sources}

    @property
    def forced(self) -> bool:
        """Whether the newest order is one that a person forced past the hard guards."""
        row = self._journal.row(
            "SELECT d.evidence FROM orders o JOIN decisions d ON d.id = o.decision "
            "WHERE o.rejected IS NULL ORDER BY o.generation DESC LIMIT 1"
        )
        return row is not None and row["evidence"].get("forced") is True

    def next_request(self) -> Path | None:
        """The oldest file that can be dealt with now.

        What changes the mixture waits for a heartbeat.
        """
        for path in requests.waiting(self._paths.requests):
            if self._eyes.status is not None or not _needs_trainer(path):
                return path
        return None

    def ended(self) -> Row | None:
        """A decision whose approval was waited for in vain."""
        row = self._journal.row(
            "SELECT d.*, a.state FROM approvals a JOIN decisions d ON d.id = a.decision "
            "WHERE a.state = 'waiting' ORDER BY d.seq LIMIT 1"
        )
        status = self._eyes.status
        if row is None or status is None:
            return None
        timeout = self._config.approval.timeout
        late = timeout is not None and status.tokens - row["tokens"] > timeout
        return row if late or status.finished else None

    # -- doing -------------------------------------------------------------------------------

    def expire(self, row: Row) -> str:
        """Nobody answered: the mixture is held."""
        why = "nobody approved it in time; the mixture is held"
        records.resolve(self._journal, row["id"], "expired", reason=why)
        return f"{row['id']} expired: {why}"

    def take(self, path: Path) -> str:
        """Deal with one request file. Returns the line to say.

        A crash between journal and rename takes the file again and finds its id there.
        """
        try:
            request = requests.read(path, self._owners(), run=self._config.run.id, key=self._key)
        except FileNotFoundError:
            return ""
        except (requests.RequestError, OSError) as error:
            if self._may_pass(path.name, error):
                raise  # what a person asked for must not be refused for a moment's trouble
            self._journal.event("request-refused", file=path.name, reason=str(error))
            requests.put_away(path, "refused")
            return f"{path.name} refused: {error}"
        known = self._journal.row("SELECT answer FROM requests WHERE id = ?", request.id)
        if known is None:
            reply = reply_to(request, self._scene(request))
            answer = self._record(request, reply)
        else:
            answer = known["answer"]["text"]
        requests.put_away(path, "taken")
        return f"{request.verb} by {request.by}: {answer}"

    def _may_pass(self, name: str, error: Exception) -> bool:
        """Whether a file that can't be read now (a stale handle, say) is worth another look."""
        if isinstance(error, requests.RequestError | NotRegularError):
            return False
        self._unread[name] += 1
        return self._unread[name] < READS

    def _owners(self) -> frozenset[int]:
        owner = self._paths.dir.stat().st_uid
        also = self._config.trainer.accept_uid
        return frozenset({owner} if also is None else {owner, also})

    def _record(self, request: requests.Request, reply: RequestOutcome) -> str:
        name = records.operated(self._journal, request, reply, scores=self._scores())
        return reply.text if name is None else f"{reply.text} ({name})"

    def _scores(self) -> Json:
        scored = observation_builder.newest_evaluation(self._journal)
        return scores(scored) if scored is not None else {}

    def _scene(self, request: requests.Request) -> RequestContext:
        status = self._eyes.status
        decision = approval = None
        if request.decision:
            wanted = request.decision
            decision = self._journal.row("SELECT * FROM decisions WHERE id = ?", wanted)
            approval = self._journal.row("SELECT * FROM approvals WHERE decision = ?", wanted)
        tokens = status.tokens if status is not None else 0
        asked, _ = self._eyes.asked_mixture(self._initial, tokens)
        seen = None
        if status is not None:
            seen = near(self._journal, self._config, self._sizes, status, _NEVER)
        newest = self._journal.value("SELECT MAX(generation) FROM orders WHERE rejected IS NULL")
        return RequestContext(
            seen=seen,  # type: ignore[arg-type]  # None only for what doesn't look at it
            config=self._config,
            status=status,
            last_intervention=self._eyes.last_applied_tokens(),
            generation=self._eyes.next_generation(),
            asked=asked,
            pins=self.pins,
            paused=self.paused,
            decision=decision,
            approval=approval,
            newest=newest or 0,
        )


def _needs_trainer(path: Path) -> bool:
    try:
        data = read_regular(path, requests.LARGEST).data  # a FIFO would be waited for, for ever
        return bool(json.loads(data)["verb"] in requests.NEEDS_TRAINER)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # it is refused when it is taken

"""``mixloop report``: what the page tells, from the journal and the trainer's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.contract import ScheduleError, Status, read_schedule
from mixloop.controller import views
from mixloop.controller.journal import Journal, queries
from mixloop.controller.views import RunStanding

ALARMS = (
    *("stranger", "order-rejected", "trouble", "tracking-failed", "tracking-refused"),
    *("journal-altered", "unscored"),
)


@dataclass(frozen=True)
class Report:
    """A run as its page tells it; lists are oldest first.

    Attributes:
        status: the trainer's newest heartbeat.
        segments: the mixtures as applied, each with its first token.
        evaluations: scored checkpoints' metrics.
        decisions: as ``mixloop history --json`` has them.
        drawn: tokens and epochs of each source at every checkpoint.
        unscored: checkpoints without a score, and benchmarks missing from one, with the reason.
        alarms: what a reviewer has to know of besides decisions, equal ones counted.
    """

    folder: Path
    status: Status
    standing: RunStanding
    segments: Sequence[Json]
    evaluations: Sequence[Json]
    decisions: Sequence[Json]
    drawn: Sequence[Json]
    unscored: Sequence[Json]
    alarms: Sequence[Json]

    @property
    def policy(self) -> str:
        """Who decided, as the controller's newest start said."""
        return str(self.standing.params.get("policy", "-"))

    def to_json(self) -> Json:
        """What ``mixloop report --json`` prints."""
        return {
            "folder": str(self.folder),
            "run": self.status.run,
            "policy": self.policy,
            "budget": self.status.budget,
            "max_epochs": self.standing.max_epochs,
            "status": views.status_json(self.standing),
            "segments": self.segments,
            "evaluations": self.evaluations,
            "decisions": self.decisions,
            "ledger": [
                {
                    "source": source.name,
                    "weight": source.applied,
                    "unique_tokens": source.unique_tokens,
                    "tokens": source.tokens,
                    "epochs": source.epochs,
                    "at_the_end": source.at_the_end,
                    "cap_at": source.cap_at,
                    "loss": source.loss,
                }
                for source in self.standing.sources
            ],
            "drawn": self.drawn,
            "unscored": self.unscored,
            "alarms": self.alarms,
        }


def gather(target: Path) -> Report:
    """Everything the page shows.

    Raises:
        BadInput: no such run, or one in which neither trainer nor controller did anything yet.
    """
    paths, journal = views.open_run(target)
    standing = views.look(paths, journal)
    if journal is None or standing.status is None:
        missing = "controller has run" if journal is None else "trainer has started"
        raise BadInput(f"{target}: no {missing} here yet, so there is nothing to report")
    try:
        opened = read_schedule(paths.schedule).latest_open
    except (OSError, ScheduleError):
        opened = None
    return Report(
        folder=paths.dir,
        status=standing.status,
        standing=standing,
        segments=views.segments(paths, opened.sequence_length if opened is not None else 1),
        evaluations=views.benchmarks(journal),
        decisions=views.history(journal),
        drawn=_drawn(journal, standing),
        unscored=_unscored(journal),
        alarms=_alarms(journal),
    )


def _drawn(journal: Journal, standing: RunStanding) -> list[Json]:
    prefix = "unique_tokens."
    sizes = {
        key.removeprefix(prefix): int(size)
        for key, size in standing.params.items()
        if key.startswith(prefix)
    }
    return [
        {
            "tokens": row.tokens,
            "epochs": {n: row.drawn[n] / size for n, size in sizes.items() if n in row.drawn},
        }
        for row in queries.checkpoints(journal)
        if row.drawn
    ]


def _unscored(journal: Journal) -> list[Json]:
    return [
        {
            "step": lack.step,
            "tokens": lack.tokens,
            "what": lack.benchmark or "checkpoint",
            "why": lack.why,
        }
        for lack in views.missing_scores(journal)
    ]


def _alarms(journal: Journal) -> list[Json]:
    alarms: dict[tuple[str, str], Json] = {}
    for event in queries.events(journal, *ALARMS):
        detail = event.detail
        what = str(detail.get("reason") or detail.get("error") or detail.get("found") or "")
        alarm = alarms.setdefault((event.kind, what), {"kind": event.kind, "what": what, "n": 0})
        alarm |= {"n": alarm["n"] + 1, "at": event.at}
    return list(alarms.values())

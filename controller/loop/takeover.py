"""What a controller has to know before it takes a run over."""

from __future__ import annotations

from collections.abc import Mapping

from mixloop.common.errors import BadInput
from mixloop.contract import RunPaths, Schedule, read_status, schedule_of
from mixloop.controller.config import RunConfig
from mixloop.controller.journal import Journal, queries


def highest_fence(paths: RunPaths) -> int:
    """The highest fence the trainer has ever seen, so that a lost journal can't go back."""
    status = read_status(paths.status).value
    seen = status.accepted.fence if status is not None else 0
    return max(seen, (schedule_of(paths.schedule).value or Schedule()).accepted[0])


def check_sources(paths: RunPaths, config: RunConfig) -> None:
    """Refuse a run.yaml that isn't of the run in its folder, or lacks a source it draws from.

    A source may be added or retired while a run goes on; the trainer takes it in, or lets it go,
    at its next start.

    Raises:
        BadInput: naming the source and the mend.
    """
    schedule = schedule_of(paths.schedule).value or Schedule()
    opened = schedule.latest_open
    if opened is None:
        return
    theirs = [source.name for source in opened.sources]
    if not set(theirs) & set(config.sources):
        raise BadInput(
            f"sources: none of those of the run in {paths.dir} ({', '.join(theirs)}); is it "
            "another run's run.yaml?"
        )
    status = read_status(paths.status).value
    drawn = [dict(status.in_force.weights)] if status is not None else []
    drawn += [dict(line.weights) for line in schedule.segments[-1:]]
    for name in theirs:
        if name not in config.sources and any(weights.get(name) for weights in drawn):
            raise BadInput(
                f"sources.{name}: missing, though the run in {paths.dir} draws from it; put it "
                "back until an order that gives it 0 is in force"
            )
    length = config.trainer.sequence_length
    if opened.sequence_length != length:
        raise BadInput(
            f"trainer.sequence_length: {length} is not the run's, which is {opened.sequence_length}"
        )


def first_mixture(
    paths: RunPaths, journal: Journal, configured: Mapping[str, float]
) -> dict[str, float]:
    """The mixture before any order of this journal.

    What was recorded at the first start; for a journal that was lost, the mixture in force, since
    going back to run.yaml's would be a change that nobody asked for.
    """
    recorded = queries.initial_mixture(journal)
    if recorded is not None:
        return recorded
    status = read_status(paths.status).value
    followed = status is not None and status.accepted.generation > 0
    return dict(status.in_force.weights if status is not None and followed else configured)

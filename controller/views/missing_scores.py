"""What has no score, and why: checkpoints, benchmarks, and stretches that a policy can't see."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mixloop.controller.core import CheckpointState, Rewind, left_by
from mixloop.controller.journal import Journal, queries

STREAK = 3
"""Checkpoints in a row without a score that are told loudly."""

_STEPS = 5  # told of one reason
_REASONS = 6  # told in one line


@dataclass(frozen=True, slots=True)
class MissingScore:
    """A checkpoint without a score (`benchmark` None), or a benchmark that it lacks."""

    step: int
    tokens: int
    benchmark: str | None
    why: str


def missing_scores(journal: Journal) -> Iterator[MissingScore]:
    """Everything that has no score, oldest first; of a checkpoint that is not due too."""
    for row in queries.checkpoint_states(journal):
        yield from _missing(journal, row)


def _missing(journal: Journal, row: CheckpointState) -> Iterator[MissingScore]:
    if row.state != "scored":
        why = "not scored" if row.state is None else row.reason or "being scored"
        yield MissingScore(row.step, row.tokens, None, why)
        return
    evaluation = queries.evaluation(journal, row.step)
    card = (evaluation.scorecard if evaluation is not None else None) or {}
    folder = card.get("checkpoint", "")
    for name, score in card.get("benchmarks", {}).items():
        if score["status"] != "ok":
            why = str(score["reason"]).replace(f"{folder}: ", "")  # alike at every checkpoint
            yield MissingScore(row.step, row.tokens, name, why)


def unscored_stretch(
    journal: Journal, benchmarks: Collection[str], rewinds: Iterable[Rewind]
) -> queries.UnscoredStretch | None:
    """The newest evaluations if none of them, :data:`STREAK` in number, has a score that steers.

    Args:
        journal: the run's.
        benchmarks: those that steer.
        rewinds: of the run; what they left behind doesn't count.
    """
    rows = [
        row
        for row in queries.checkpoint_states(journal)
        if row.state in ("scored", "failed") and _on_branch(row, rewinds)
    ][-STREAK:]
    if len(rows) < STREAK or not benchmarks:
        return None
    lacking = [list(_missing(journal, row)) for row in rows]
    for missing in lacking:
        if not _is_blind(missing, benchmarks):
            return None
    return queries.UnscoredStretch([row.step for row in rows], _reasons(lacking[-1]))


def _is_blind(missing: Sequence[MissingScore], benchmarks: Collection[str]) -> bool:
    names = {lack.benchmark for lack in missing}
    return None in names or names >= set(benchmarks)


def _on_branch(row: CheckpointState, rewinds: Iterable[Rewind]) -> bool:
    return left_by(rewinds, row.sample, row.incarnation) is None


def _reasons(missing: Sequence[MissingScore]) -> str:
    """``gsm8k, math: can't be loaded: …; humaneval: no sandbox``."""
    by_reason: dict[str, list[str]] = {}
    for lack in missing:
        by_reason.setdefault(lack.why, []).append(lack.benchmark or "")
    return "; ".join(
        f"{', '.join(names)}: {why}" if names[0] else why for why, names in by_reason.items()
    )


def scoring_summary(
    journal: Journal, rewinds: Iterable[Rewind], folder: Path, incomplete: Mapping[int, str]
) -> str:
    """What became of a run's checkpoints, in one line: ``every checkpoint is scored``.

    Those that were not due, or that the trainer has left behind, don't count.

    Args:
        journal: the run's.
        rewinds: of the run.
        folder: where its checkpoints are looked for.
        incomplete: steps of folders there without a whole one, and what they lack.
    """
    rows = [
        row
        for row in queries.checkpoint_states(journal)
        if row.state is not None and _on_branch(row, rewinds)
    ]
    broken = _broken(folder, incomplete)
    if not rows:
        return f"nothing is scored: {broken or f'no checkpoint was found in {folder}'}"
    lacking = {row.step: list(_missing(journal, row)) for row in rows}
    complete = sum(not missing for missing in lacking.values())
    if complete == len(rows):
        return "; ".join(filter(None, ("every checkpoint is scored", broken)))
    by_reason = _by_reason(
        {step: _reasons(missing) for step, missing in lacking.items() if missing}
    )
    told = [f"{_steps(steps)}: {why}" for why, steps in islice(by_reason.items(), _REASONS)]
    left = len(by_reason) - len(told)
    told += [f"{left} more reasons in `mixloop report`"] if left else []
    counts = f"{complete or 'none'} of {len(rows)} checkpoints {'is' if complete < 2 else 'are'}"
    where = f"missing at {'; at '.join(told)}"
    return "; ".join(filter(None, (f"{counts} scored in full", where, broken)))


def _broken(folder: Path, incomplete: Mapping[int, str]) -> str:
    if not incomplete:
        return ""
    by_reason = islice(_by_reason(incomplete).items(), _REASONS)
    told = "; at ".join(f"{_steps(steps)}: {why}" for why, steps in by_reason)
    return f"no whole checkpoint in {folder} at {told}"


def _by_reason(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    steps: dict[str, list[int]] = {}
    for step, why in reasons.items():
        steps.setdefault(why, []).append(step)
    return steps


def _steps(steps: Sequence[int]) -> str:
    """``steps 10, 20, 30``, or of many the first and the last."""
    if len(steps) > _STEPS:
        shown = ", ".join(map(str, steps[: _STEPS - 1]))
        return f"steps {shown} … {steps[-1]} ({len(steps)} checkpoints)"
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(map(str, steps))}"

"""From journal and heartbeat to what a policy may look at. Reads; decides nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.common.paired import Difference
from mixloop.common.types import Json
from mixloop.controller.config import RunConfig
from mixloop.controller.core import Steering, guard_settings, remaining, steer_all
from mixloop.controller.journal import Journal, Row
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Limits,
    MissingScore,
    Observation,
    PastDecision,
    Source,
)


def unique_tokens(config: RunConfig) -> dict[str, int]:
    """Unique tokens of each source, from its own header or index.

    Raises:
        BadInput: for a source that is missing or broken, naming source and path.
    """
    return {name: info.tokens for name, info in source_infos(config).items()}


def planned_tokens(config: RunConfig) -> dict[str, int]:
    """Unique tokens of each source to plan with: its own, else those that run.yaml states.

    Raises:
        BadInput: for a source that has neither, naming source and path.
    """
    stated = {name: source.tokens for name, source in config.sources.items() if source.tokens}
    found = source_infos(config, missing=stated)
    return {name: found[name].tokens if name in found else stated[name] for name in config.sources}


def source_infos(config: RunConfig, missing: Container[str] = ()) -> dict[str, Any]:
    """What each source is (:class:`mixloop.trainer.sources.StoreInfo`).

    Args:
        missing: sources that needn't be there yet.

    Raises:
        BadInput: for another one that is missing or broken, naming source and path.
    """
    from mixloop.trainer.config import JobError
    from mixloop.trainer.sources import source_info

    found = {}
    for name, source in config.sources.items():
        try:
            found[name] = source_info(source.path, source.options)
        except JobError as error:
            if name not in missing:
                mend = f"prepare it, or plan with `sources.{name}.tokens: 250B`"
                raise BadInput(f"sources.{name}.path: {error}; {mend}") from None
    return found


def evaluations(
    journal: Journal, *, since: int = 0, until: int | None = None
) -> tuple[Evaluation, ...]:
    """Every scored checkpoint, oldest first, of the steps from ``since`` up to ``until``."""
    rows = journal.each(
        "SELECT c.*, e.scorecard FROM checkpoints c JOIN evaluations e USING (step) "
        "WHERE e.state = 'scored' AND c.step BETWEEN ? AND ? ORDER BY c.step",
        since,
        until if until is not None else 2**62,
    )
    return tuple(evaluation(row) for row in rows)


def evaluation(row: Row) -> Evaluation:
    """A row of checkpoints with its scorecard, as policies see it."""
    # validated as a whole: thousands of these are made for a decision late in a long run
    return Evaluation.model_validate(
        {
            "step": row["step"],
            "tokens": row["tokens"],
            "phase": row["phase"],
            "generation": row["generation"],
            "weights": row["weights"],
            "drawn": row["drawn"],
            "losses": row["losses"],
            "benchmarks": _benchmark_scores(row["scorecard"]),
        }
    )


def last_evaluations(journal: Journal, number: int, *, until: int) -> tuple[Evaluation, ...]:
    """The newest scored checkpoints up to the step ``until``, so many at most, oldest first."""
    first = journal.value(
        "SELECT MIN(step) FROM (SELECT step FROM evaluations WHERE state = 'scored' "
        "AND step <= ? ORDER BY step DESC LIMIT ?)",
        until,
        number,
    )
    return () if first is None else evaluations(journal, since=first, until=until)


def newest_evaluation(journal: Journal) -> Evaluation | None:
    """The scored checkpoint of the greatest step."""
    newest = journal.value("SELECT MAX(step) FROM evaluations WHERE state = 'scored'")
    return None if newest is None else evaluations(journal, since=newest)[-1]


def around(journal: Journal, tokens: int) -> tuple[Evaluation, ...]:
    """The scored checkpoints that :func:`outcome` looks at for a change at ``tokens``: the two
    before it and those up to the first that is far enough after it; none until there is one."""
    scored = "FROM checkpoints c JOIN evaluations e USING (step) WHERE e.state = 'scored'"
    before = journal.rows(
        f"SELECT c.step, c.tokens {scored} AND c.tokens <= ? ORDER BY c.step DESC LIMIT 2", tokens
    )
    if not before:
        return ()
    far = max(tokens + 1, 2 * tokens - before[0]["tokens"])
    last = journal.value(
        f"SELECT c.step {scored} AND c.step > ? AND c.tokens >= ? ORDER BY c.step LIMIT 1",
        before[0]["step"],
        far,
    )
    return () if last is None else evaluations(journal, since=before[-1]["step"], until=last)


def data_kinds(journal: Journal) -> dict[str, str]:
    """Where each benchmark's items came from at the newest scored checkpoint."""
    row = journal.row(
        "SELECT scorecard FROM evaluations WHERE state = 'scored' ORDER BY step DESC LIMIT 1"
    )
    if row is None:
        return {}
    benchmarks = row["scorecard"]["benchmarks"].items()
    return {name: score["data_kind"] for name, score in benchmarks if score["data_kind"]}


def benchmark_scores(scorecard: Json) -> dict[str, BenchmarkScore]:
    """A scorecard's benchmarks as policies see them; a missing one is absent."""
    found = _benchmark_scores(scorecard)
    return {name: BenchmarkScore.model_validate(score) for name, score in found.items()}


def _benchmark_scores(scorecard: Json) -> Json:
    kept = ("value", "stderr", "n", "higher_is_better")
    return {
        name: {
            "metrics": {
                metric: {key: found[key] for key in kept}
                for metric, found in score["metrics"].items()
            },
            "items": score["items"],
        }
        for name, score in scorecard["benchmarks"].items()
        if score["status"] == "ok"
    }


def steering(config: RunConfig, scored: Sequence[Evaluation]) -> dict[str, Steering]:
    """What steers each configured benchmark after these evaluations; see ``steering.py``."""
    return steer_all(config.evals.benchmarks, scored, config.evals.steering)


def past_decisions(journal: Journal, before: int | None = None) -> tuple[PastDecision, ...]:
    """Every decision so far, oldest first; with ``before``, those of a lower sequence number.

    Those made on a branch that the trainer has left are not among them.
    """
    return tuple(
        PastDecision(
            id=row["id"],
            step=row["step"],
            tokens=row["tokens"],
            verdict=row["verdict"],
            generation=row["generation"],
            weights_before=row["weights_before"],
            weights_after=row["weights_after"],
            rule=row["evidence"].get("rule"),
            evidence=row["evidence"],
        )
        for row in journal.each(
            "SELECT id, step, tokens, verdict, generation, weights_before, weights_after, evidence "
            "FROM decisions WHERE seq < ? AND abandoned_by IS NULL ORDER BY seq",
            before if before is not None else 2**62,
        )
    )


def observation(
    journal: Journal,
    config: RunConfig,
    sizes: Mapping[str, int],
    status: Any,
    step: int,
    *,
    scored: tuple[Evaluation, ...] | None = None,
    before: int | None = None,
) -> Observation:
    """Everything known when the decision on the checkpoint at ``step`` is due.

    Args:
        scored: the evaluations up to ``step``, where they have been read already.
        before: sequence number of a decision; only what was decided before it is known.
    """
    near = standing(journal, config, sizes, status, before=before)
    if scored is None:
        scored = evaluations(journal, until=step)
    return with_history(near, steering(config, scored), scored, past_decisions(journal, before))


def with_history(
    near: Observation,
    steers: Mapping[str, Steering],
    scored: tuple[Evaluation, ...],
    decisions: tuple[PastDecision, ...],
) -> Observation:
    """A :func:`standing`, with all that was scored and decided until then."""
    return near.model_copy(
        update={
            "evaluations": scored,
            "steering": {name: one.metric for name, one in steers.items()},
            "decisions": decisions,
        }
    )


def standing(
    journal: Journal,
    config: RunConfig,
    sizes: Mapping[str, int],
    status: Any,
    *,
    scored: tuple[Evaluation, ...] = (),
    before: int | None = None,
) -> Observation:
    """Where the run stands, without its history: an observation whose size doesn't grow.

    The mixture and the ledger are those of *now* (``status``), not of the checkpoint: between the
    two the trainer has gone on.

    Args:
        scored: the evaluations that it has all the same.
        before: as in :func:`observation`.
    """
    guards = guard_settings(config)
    sources = {}
    for name, source in config.sources.items():
        entry = status.sources.get(name)
        drawn = entry.tokens if entry is not None else 0
        # what the trainer has of it, which may have been extended since this controller began
        size = entry.unique_tokens if entry is not None else sizes[name]
        sources[name] = Source(
            unique_tokens=size,
            tags=source.tags,
            standby=source.standby,
            drawn=drawn,
            epochs=max(drawn / size, entry.epochs if entry is not None else 0.0),
        )
    return Observation(
        run=config.run.id,
        step=status.step,
        tokens=status.tokens,
        budget=config.budget,
        phase=status.phase,
        seed=config.run.seed,
        generation=status.in_force.generation,
        in_force=status.in_force.generation >= _newest_order(journal, before),
        sources=sources,
        weights={name: status.in_force.weights.get(name, 0.0) for name in config.sources},
        plan=_plan_ahead(journal, status),
        evaluations=scored,
        every=config.evals.every or config.trainer.checkpoint_every or 0,
        watch=tuple(config.evals.watch),
        objective=config.objective,
        limits=Limits(**guards.model_dump(include=set(Limits.model_fields))),
    )


def _newest_order(journal: Journal, before: int | None) -> int:
    if before is None:
        found = journal.value("SELECT MAX(generation) FROM orders WHERE rejected IS NULL")
    else:
        found = journal.value(
            "SELECT MAX(o.generation) FROM orders o JOIN decisions d ON d.id = o.decision "
            "WHERE o.rejected IS NULL AND d.seq < ?",
            before,
        )
    return int(found or 0)


def _plan_ahead(journal: Journal, status: Any) -> tuple[tuple[int, dict[str, float]], ...]:
    """What the order in force does later, as the trainer will carry it out."""
    row = journal.row(
        "SELECT weights, plan FROM orders WHERE generation = ?", status.in_force.generation
    )
    if row is None or not row["plan"]:
        return ()
    _, left = remaining(row["weights"], row["plan"], status.tokens)
    return tuple((until, weights) for until, weights in left)


def digest(seen: Observation) -> str:
    """Identity of an observation, to tell later whether a replay saw the same."""
    return digest_of(seen.model_dump_json())


def digest_of(text: str) -> str:
    """:func:`digest` of an observation that is JSON already."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def outcome(order: Json | None, scored: Sequence[Evaluation]) -> tuple[int, dict[str, Json]] | None:
    """What the benchmarks did next: the last checkpoint before the change against one after.

    The one after is the first that has spent at least half of the tokens between the two under
    the new mixture; a checkpoint taken right after a change says nothing about it.

    Returns:
        The step of the later checkpoint and, per benchmark, the paired gain (positive is better)
        in bits per byte with its standard error, and the same over the pair before (the pace it
        had without the change); None until there is such a pair.
    """
    if order is None or order["applied_tokens"] is None:
        return None
    before = [e for e in scored if e.tokens <= order["applied_tokens"]]
    if not before:
        return None
    change, start = order["applied_tokens"], before[-1].tokens
    after = [e for e in scored if e.tokens > change and 2 * (e.tokens - change) >= e.tokens - start]
    if not after:
        return None
    new = after[0]
    lens = Observation(sources={}, weights={}, evaluations=(*before[-2:], new))
    found = {benchmark: _effect(lens, benchmark) for benchmark in new.benchmarks}
    return new.step, {name: effect for name, effect in found.items() if effect is not None}


def effects(before: Evaluation, after: Evaluation) -> dict[str, Json]:
    """Per benchmark the paired gain between two checkpoints, as :func:`outcome` tells it."""
    lens = Observation(sources={}, weights={}, evaluations=(before, after))
    found = {benchmark: _effect(lens, benchmark) for benchmark in after.benchmarks}
    return {name: effect for name, effect in found.items() if effect is not None}


def _effect(lens: Observation, benchmark: str) -> Json | None:
    """The gain over the pair around the change, and over the pair before it to compare with."""
    difference = _difference(lens, benchmark, -2, -1)
    if difference is None or not math.isfinite(difference.stderr):
        return None  # one item in common says nothing of its own noise
    earlier = _difference(lens, benchmark, -3, -2) if len(lens.evaluations) > 2 else None
    if earlier is not None and not math.isfinite(earlier.stderr):
        earlier = None
    return {
        "metric": difference.metric,
        "gain": difference.gain,
        "stderr": difference.stderr,
        "n": difference.n,
        "from_step": lens.evaluations[-2].step,
        "to_step": lens.evaluations[-1].step,
        "gain_before": earlier.gain if earlier is not None else None,
        "stderr_before": earlier.stderr if earlier is not None else None,
        "steps_before": lens.evaluations[-2].step - lens.evaluations[-3].step if earlier else None,
    }


def _difference(lens: Observation, benchmark: str, older: int, newer: int) -> Difference | None:
    try:
        return lens.difference(benchmark, older, newer)
    except MissingScore:
        return None

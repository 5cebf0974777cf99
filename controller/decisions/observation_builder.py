"""From journal and heartbeat to what a policy may look at. Reads; decides nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.controller.core import (
    ScoredCheckpoint,
    Steering,
    steer_all,
)
from mixloop.controller.journal import Journal, queries
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    ExperimentResult,
    Limits,
    Observation,
    PastDecision,
    Source,
)

from . import experiment_evidence

if TYPE_CHECKING:
    from mixloop.controller.config import RunConfig


def unique_tokens(config: RunConfig) -> dict[str, int]:
    """Unique tokens of each source, from its own header or index: those that an epoch draws.

    Raises:
        BadInput: for a source that is missing, broken or too short, naming source and path.
    """
    return epoch_tokens(config, source_infos(config))


def epoch_tokens(config: RunConfig, infos: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of one epoch of each source: its whole windows, as the trainer counts them.

    Raises:
        BadInput: a source is shorter than one window.
    """
    length = config.trainer.sequence_length
    sizes = {name: info.epoch_tokens(length) for name, info in infos.items()}
    for name, size in sizes.items():
        if not size:
            raise BadInput(
                f"sources.{name}: {infos[name].tokens} tokens are fewer than one sample of "
                f"trainer.sequence_length {length}; give more text, or lower it"
            )
    return sizes


def planned_tokens(config: RunConfig) -> dict[str, int]:
    """Unique tokens of each source to plan with: its own, else those that run.yaml states.

    Raises:
        BadInput: for a source that has neither, naming source and path.
    """
    stated = {name: source.tokens for name, source in config.sources.items() if source.tokens}
    sizes = epoch_tokens(config, source_infos(config, missing=stated))
    return {name: sizes.get(name) or stated[name] for name in config.sources}


def source_infos(config: RunConfig, missing: Container[str] = ()) -> dict[str, Any]:
    """What each source is (:class:`mixloop.trainer.sources.StoreInfo`).

    Raises:
        BadInput: for one that is missing or broken and not among those that needn't be there yet
            (``missing``), naming source and path.
    """
    from mixloop.trainer.config import JobError
    from mixloop.trainer.sources import source_info

    infos = {}
    for name, source in config.sources.items():
        try:
            infos[name] = source_info(source.path, source.options)
        except JobError as error:
            if name not in missing:
                mend = f"prepare it, or plan with `sources.{name}.tokens: 250B`"
                raise BadInput(f"sources.{name}.path: {error}; {mend}") from None
    return infos


def evaluations(journal: Journal, **which: int) -> tuple[Evaluation, ...]:
    """Scored checkpoints as policies see them, oldest first.

    ``which`` of them is said as :func:`~mixloop.controller.journal.queries.scored` takes it.
    """
    return tuple(_evaluation(row) for row in queries.scored(journal, **which))


def _evaluation(row: ScoredCheckpoint) -> Evaluation:
    # validated as a whole: thousands of these are made for a decision late in a long run
    return Evaluation.model_validate(
        {
            "step": row.step,
            "tokens": row.tokens,
            "phase": row.phase,
            "generation": row.generation,
            "weights": row.weights,
            "drawn": row.drawn,
            "losses": row.losses,
            "benchmarks": _benchmark_scores(row.scorecard),
        }
    )


def newest_evaluation(journal: Journal) -> Evaluation | None:
    """The scored checkpoint of the greatest step."""
    return next(iter(evaluations(journal, newest=1)), None)


def data_kinds(journal: Journal) -> dict[str, str]:
    """Where each benchmark's items came from at the newest scored checkpoint."""
    newest = next(queries.scored(journal, newest=1), None)
    if newest is None:
        return {}
    benchmarks = newest.scorecard["benchmarks"].items()
    return {name: score["data_kind"] for name, score in benchmarks if score["data_kind"]}


def benchmark_scores(scorecard: Json) -> dict[str, BenchmarkScore]:
    """A scorecard's benchmarks as policies see them; a missing one is absent."""
    scores = _benchmark_scores(scorecard).items()
    return {name: BenchmarkScore.model_validate(score) for name, score in scores}


def _benchmark_scores(scorecard: Json) -> Json:
    kept = ("value", "stderr", "n", "higher_is_better")
    return {
        name: {
            "metrics": {
                metric: {key: value[key] for key in kept}
                for metric, value in score["metrics"].items()
            },
            "items": score["items"],
        }
        for name, score in scorecard["benchmarks"].items()
        if score["status"] == "ok"
    }


def past_decisions(journal: Journal, before: int = queries.ALL) -> tuple[PastDecision, ...]:
    """Decisions of a lower number than ``before``, oldest first.

    Those on a branch that the trainer has left are not among them.
    """
    return tuple(
        PastDecision(
            id=row.id,
            step=row.step,
            tokens=row.tokens,
            verdict=row.verdict,
            generation=row.generation,
            weights_before=dict(row.weights_before),
            weights_after=dict(row.weights_after),
            rule=row.evidence.get("rule"),
            evidence=row.evidence,
        )
        for row in queries.decisions_on_branch(journal, before=before)
    )


def observation(
    journal: Journal,
    config: RunConfig,
    sizes: Mapping[str, int],
    status: Any,
    *,
    scored: tuple[Evaluation, ...],
    before: int,
) -> Observation:
    """Everything that was known when the decision of the number ``before`` was due.

    ``status`` is the trainer's heartbeat and ``scored`` the evaluations up to then; ``sizes`` are
    unique tokens by source.
    """
    now = standing(journal, config, sizes, status, before=before)
    steers = steer_all(config.evals.benchmarks, scored, config.evals.steering)
    known = queries.experiments_known(journal, before)
    made = experiment_evidence.experiments(journal, before=before, known=known)
    return with_history(now, steers, scored, past_decisions(journal, before), made)


def with_history(
    now: Observation,
    steers: Mapping[str, Steering],
    scored: tuple[Evaluation, ...],
    decisions: tuple[PastDecision, ...],
    made: tuple[ExperimentResult, ...],
) -> Observation:
    """A :func:`standing`, with all that was scored, decided and tried until then."""
    return now.model_copy(
        update={
            "evaluations": scored,
            "steering": {name: steering.metric for name, steering in steers.items()},
            "decisions": decisions,
            "experiments": tuple(one for one in made if not one.receipt),
            "receipts": tuple(one for one in made if one.receipt and one.state == "done"),
        }
    )


def standing(
    journal: Journal,
    config: RunConfig,
    sizes: Mapping[str, int],
    status: Any,
    *,
    scored: tuple[Evaluation, ...] = (),
    before: int = queries.ALL,
) -> Observation:
    """Where the run stands, without its history: an observation whose size doesn't grow.

    The mixture and the ledger are those of *now* (``status``), not of the checkpoint: between the
    two the trainer has gone on. ``scored`` are the evaluations that it has all the same; the rest
    is as in :func:`observation`.
    """
    from mixloop.controller.core import guard_settings

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
        in_force=status.in_force.generation >= queries.newest_generation(journal, before=before),
        sources=sources,
        weights={name: status.in_force.weights.get(name, 0.0) for name in config.sources},
        plan=_plan_ahead(journal, status),
        evaluations=scored,
        every=config.evals.every or config.trainer.checkpoint_every or 0,
        decay=config.decay,
        watch=tuple(config.evals.watch),
        objective=config.objective,
        limits=Limits(**guards.model_dump(include=set(Limits.model_fields))),
        experiment_tokens=_experiment_tokens(journal, config, before),
    )


def _experiment_tokens(journal: Journal, config: RunConfig, before: int) -> int:
    """What is left of their budget; only experiments of earlier decisions have taken of it."""
    if not config.experiment_tokens:
        return 0
    return max(0, config.experiment_tokens - queries.experiments_charged(journal, before=before))


def _plan_ahead(journal: Journal, status: Any) -> tuple[tuple[int, dict[str, float]], ...]:
    """What the order in force does later, as the trainer will carry it out."""
    from mixloop.controller.core import remaining

    order = queries.order(journal, status.in_force.generation)
    if order is None:
        return ()
    return remaining(order.weights, order.plan, status.tokens)[1]


def digest(seen: Observation) -> str:
    """Identity of an observation, to tell later whether a replay saw the same."""
    absent: dict[str, object] = {"decay": None, "experiments": (), "experiment_tokens": 0}
    absent["receipts"] = ()
    # fields that older journals knew not of
    later = {name for name, value in absent.items() if getattr(seen, name) == value}
    return "sha256:" + hashlib.sha256(seen.model_dump_json(exclude=later).encode()).hexdigest()

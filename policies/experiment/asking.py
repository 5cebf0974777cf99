"""When an experiment is due, and which one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixloop.policies.interface import Experiment, ExperimentResult, MergeDesign, Observation

from .options import ExperimentOptions

DECAY = 0.1  # of the budget, where nobody says how long the learning rate decays
AHEAD = 2  # evaluations before the decay: one for the result, one for the order
WORTH = 0.5  # of the tokens left: an experiment that costs more comes too late
ATTEMPTS = 2  # at one moment, when an experiment fails


def decay_begins(observation: Observation) -> int:
    """The token at which the learning rate begins to decay, as far as it is known."""
    decay = DECAY * observation.budget if observation.decay is None else observation.decay
    return round(observation.budget - decay)


def moments(options: ExperimentOptions, observation: Observation) -> list[int]:
    """Tokens from which an experiment is due, in order."""
    wanted = [round(part * observation.budget) for part in options.times]
    if options.before_decay:
        wanted.append(decay_begins(observation) - AHEAD * observation.every)
    return sorted(moment for moment in set(wanted) if 0 <= moment < observation.budget)


def due(options: ExperimentOptions, observation: Observation) -> int | None:
    """How many experiments are still to come, this one included; None if none is due now.

    What counts is the checkpoint that it would start from: the trainer has gone on since.
    """
    wanted = moments(options, observation)
    scored = observation.evaluations
    now = scored[-1].tokens if scored else observation.tokens
    passed = [moment for moment in wanted if moment <= now]
    if not passed or observation.phase == "decay":
        return None
    since = [e for e in observation.experiments if e.tokens >= passed[-1]]
    failed = [e for e in since if e.state == "failed"]
    if len(since) > len(failed) or len(failed) >= ATTEMPTS:
        return None
    return len(wanted) - len(passed) + 1


def length(options: ExperimentOptions, observation: Observation, branches: int, coming: int) -> int:
    """Tokens of each branch, the control's among them; 0: none.

    The option's, as far as the budget goes; else this one's part of the budget left, and never more
    than is worth it so late in the run.
    """
    left = observation.experiment_tokens
    if options.tokens:
        return min(options.tokens, left // (branches + 1))
    parts = [_part(moment / observation.budget) for moment in moments(options, observation)]
    share = parts[-coming] / sum(parts[-coming:])
    left_of_run = observation.budget - observation.tokens
    return int(min(share * left, WORTH * left_of_run) // (branches + 1))


def _part(gone: float) -> float:
    """What an experiment is given, in any unit, when this part of the run is gone.

    The more a model has seen, the less a branch changes it and the longer it takes to tell; the
    less is left, the less it is worth.
    """
    return math.sqrt(max(gone, 1e-3)) * (1 - gone)


def design(
    options: ExperimentOptions,
    observation: Observation,
    tokens: int,
    prior: Mapping[str, float],
    most: Mapping[str, float],
    reason: str,
) -> Experiment:
    """One expert per source with room in the ledger, to be merged; or tilts towards each.

    Args:
        options: the policy's.
        observation: the run.
        tokens: of each branch.
        prior: over the sources that may be used.
        most: greatest share by the ledger over the rest of the budget.
        reason: in words.
    """
    names = [name for name, share in prior.items() if share > 0 and most.get(name, 1.0) > 0]
    if options.design == "tilts" or not merges_work(observation.experiments):
        return Experiment(
            [_tilted(observation, name, options.tilt) for name in names], tokens, reason
        )
    single = [{name: 1.0} for name in names]
    merge = MergeDesign(prior=dict(prior), most=dict(most), strength=options.strength)
    return Experiment(single, tokens, reason, merge=merge)


def merges_work(experiments: tuple[ExperimentResult, ...]) -> bool:
    """Whether merges were fitted when they were last asked for, or never were asked for."""
    asked = [e for e in experiments if e.design is not None and e.ended and e.state != "refused"]
    return not asked or bool(asked[-1].fits)


def _tilted(observation: Observation, name: str, size: float) -> dict[str, float]:
    present = observation.weights
    tilted = {n: (1 - size) * present.get(n, 0.0) for n in observation.sources}
    tilted[name] += size
    total = sum(tilted.values())
    return {n: share / total for n, share in tilted.items() if share > 0}

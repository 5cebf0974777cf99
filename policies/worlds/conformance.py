"""Whether a world of one's own keeps to the protocol: ``check_world(MyWorld())`` in a test.

Every check raises ``AssertionError`` with a sentence that says what to mend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mixloop.policies.interface import PolicyError

from .world_protocol import world_sources

SEED, OTHER = 1, 2
SHORT = 10**8  # tokens of a branch


def check_world(world: Any, *, tokens: int | None = None) -> None:
    """Run a world through what a simulation does, and check that it answers as one should.

    Args:
        world: an instance; it is reset.
        tokens: the budget to spend; without it the world's own, or 40 billion.

    Raises:
        AssertionError: naming what isn't as it should be.
    """
    _check_members(world)
    try:
        names = list(world_sources(world))
    except PolicyError as error:
        raise AssertionError(str(error)) from None
    even = dict.fromkeys(names, 1 / len(names))
    span = max(1, (tokens or int(getattr(world, "budget", 40 * 10**9))) // 10)
    _check_scores(world, even, span)
    _check_seeds(world, even, span)
    _check_mixtures(world, names, span)
    _check_extras(world, names)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)


def _check_members(world: Any) -> None:
    for name in ("reset", "advance", "evaluate"):
        _require(callable(getattr(world, name, None)), f"a world needs {name}(); add it")
    benchmarks = getattr(world, "benchmarks", None)
    listed = benchmarks is not None and not isinstance(benchmarks, str) and len(benchmarks) > 0
    _require(listed, "a world needs benchmarks: a list of at least one name")


def _scores(world: Any) -> dict[str, tuple[float, float]]:
    return _read(world, world.evaluate(), "evaluate()")


def _read(world: Any, answer: Any, asked: str) -> dict[str, tuple[float, float]]:
    _require(isinstance(answer, Mapping), f"{asked} must return a mapping of benchmarks")
    scores = {}
    for name, score in answer.items():
        _require(name in world.benchmarks, f"{asked} scored {name!r}, which isn't in benchmarks")
        pair = isinstance(score, tuple | list) and len(score) == 2
        _require(pair, f"{asked}[{name!r}] is {score!r}; return (value, standard error)")
        value, stderr = map(float, score)
        _require(math.isfinite(value), f"{name} is {value}; leave a missing benchmark out")
        _require(stderr >= 0, f"{name} has standard error {stderr}; it must be 0 or more")
        scores[str(name)] = (value, stderr)
    return scores


def _run(
    world: Any, seed: int, even: Mapping[str, float], span: int, evaluations: int
) -> list[dict[str, tuple[float, float]]]:
    world.reset(seed)
    history = []
    for _ in range(evaluations):
        world.advance(dict(even), span)
        history.append(_scores(world))
    return history


def _check_scores(world: Any, even: Mapping[str, float], span: int) -> None:
    scored = {name for scores in _run(world, SEED, even, span, 10) for name in scores}
    never = ", ".join(sorted(set(world.benchmarks) - scored))
    _require(not never, f"{never} was never scored in ten evaluations")


def _check_seeds(world: Any, even: Mapping[str, float], span: int) -> None:
    first, _, again = (_run(world, seed, even, span, 3) for seed in (SEED, OTHER, SEED))
    _require(again == first, "reset(seed) must begin again: the same seed, the same scores")


def _check_mixtures(world: Any, names: list[str], span: int) -> None:
    """One source alone, a source left out, a part of a segment, and input that is left alone."""
    world.reset(SEED)
    for name in names:
        world.advance(dict.fromkeys(names, 0.0) | {name: 1.0}, span)
    world.advance({names[0]: 1.0}, 1)
    mixture = dict.fromkeys(names, 1 / len(names))
    before = dict(mixture)
    world.advance(mixture, span // 3 or 1)
    _require(mixture == before, "advance() changed the mixture it was given; copy it")
    _scores(world)


def _check_extras(world: Any, names: list[str]) -> None:
    world.reset(SEED)
    if callable(getattr(world, "truth", None)):
        truth = world.truth()
        same = set(truth) == set(world.benchmarks)
        _require(same, "truth() must give every benchmark, missing or not")
        _require(all(map(math.isfinite, truth.values())), "truth() must be finite")
    higher = set(getattr(world, "higher_is_better", ()))
    unknown = ", ".join(sorted(higher - set(world.benchmarks)))
    _require(not unknown, f"higher_is_better names {unknown}, which isn't in benchmarks")
    if callable(getattr(world, "phase", None)):
        phase = world.phase()
        legal = phase in (None, "warmup", "stable", "decay")
        _require(legal, f"phase() is {phase!r}; return warmup, stable, decay or None")
    if callable(getattr(world, "optimum", None)):
        _check_optimum(world.optimum(), names)
    even = dict.fromkeys(names, 1 / len(names))
    for ask, ways in (("branch", ("to zero", "as the run")), ("merge", ("whole", "first"))):
        if callable(getattr(world, ask, None)):
            for way in ways:
                _check_experiment(world, ask, even, way)


def _check_experiment(world: Any, ask: str, even: Mapping[str, float], way: str) -> None:
    world.reset(SEED)
    world.advance(dict(even), SHORT)
    names = list(even)
    for mixture in (even, {names[0]: 1.0}):
        scores = _read(world, getattr(world, ask)(dict(mixture), SHORT, way), f"{ask}()")
        again = _read(world, getattr(world, ask)(dict(mixture), SHORT, way), f"{ask}()")
        _require(scores == again, f"{ask}() must answer the same question alike")
        _require(bool(scores), f"{ask}() must score at least one benchmark")
    after = _scores(world)
    world.reset(SEED)
    world.advance(dict(even), SHORT)
    _require(_scores(world) == after, f"{ask}() moved the world or its noise; work on a copy")


def _check_optimum(best: Any, names: list[str]) -> None:
    if isinstance(best, Mapping):
        _require(set(best) <= set(names), "optimum() names a source that there isn't")
        sums = abs(math.fsum(best.values()) - 1) <= 1e-6 and min(best.values()) >= -1e-9
        _require(sums, f"optimum() is no mixture: the shares sum to {math.fsum(best.values()):g}")
    elif best is not None:
        number = isinstance(best, int | float) and math.isfinite(best)
        _require(number, "optimum() must be a mixture, the mean final loss as a number, or None")

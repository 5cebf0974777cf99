"""The table of `bench/real.py`: what runs' results say, and against what. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from mixloop.common.paired import paired_difference
from mixloop.policies.mixture import total_variation

Json = dict[str, Any]
Items = Mapping[str, Mapping[str, Sequence[float]]]
"""Per benchmark and item: bits per byte and gold bytes."""

LEFT_ALONE = ("start", "uniform")
"""Runs whose mixture never changes: from the same start, and from uniform."""
MOVED = 0.05  # total variation from the start beyond which a flat run was moved
LAST_ORDERS = 0.25  # of the run, at its end, over which a flat run's mixture is averaged


def score(result: Json) -> float:
    """Mean bits per byte over the benchmarks, on the judging items."""
    return float(mean(entry["value"] for entry in result["judged"].values()))


def paired_gain(before: Json, after: Json) -> tuple[float, float]:
    """How much better (bits per byte, mean over benchmarks) ``after`` is, and the error over items.

    Paired item by item within each benchmark; benchmarks' errors are independent.
    """
    return paired_items(_items(before), _items(after))


def paired_items(before: Items, after: Items) -> tuple[float, float]:
    """The same for two mappings of items."""
    pairs = [paired_difference(_pairs(before[n]), _pairs(after[n]), False) for n in before]
    gain = mean(pair.gain for pair in pairs)
    return gain, math.sqrt(sum(pair.stderr**2 for pair in pairs)) / len(pairs)


def _items(result: Json) -> Items:
    return {name: entry["items"] for name, entry in result["judged"].items()}


def _pairs(items: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {item: (float(value), float(weight)) for item, (value, weight) in items.items()}


def gap_closed(start: float, reference: float, final: float) -> float | None:
    """The part of the way from ``start`` to ``reference``; None where there is no way to go."""
    return (start - final) / (start - reference) if start - reference > 1e-6 else None


def tokens_to_reach(curve: Sequence[Sequence[float]], level: float) -> float | None:
    """Tokens at which a curve of (tokens, bits) first is at a level, between points linearly."""
    before: Sequence[float] | None = None
    for point in curve:
        if point[1] <= level:
            if before is None:
                return float(point[0])
            part = (before[1] - level) / (before[1] - point[1])
            return float(before[0] + part * (point[0] - before[0]))
        before = point
    return None


def delays(result: Json, every: int) -> list[Json]:
    """Per intervention in force: steps from its checkpoint to the first under it, and as a part."""
    steps = [
        entry["applied_step"] - entry["step"]
        for entry in result["decisions"]
        if entry["verdict"] == "intervene" and entry["applied_step"] is not None
    ]
    return [{"steps": count, "part": count / every} for count in steps]


def interventions(result: Json) -> int:
    return sum(entry["verdict"] == "intervene" for entry in result["decisions"])


def row(name: str, runs: Mapping[int, Json], against: Mapping[str, Mapping[int, Json]]) -> Json:
    """One arm over its seeds, against the references of the same seeds.

    Gaps are those from the static uniform mixture to a reference, whatever the start.

    Args:
        name: The arm's.
        runs: Results by seed.
        against: By name (``start`` and ``uniform``: left alone; ``search``, ``hand-made``), then
            by seed.
    """
    uniform = against["uniform"]
    both = [seed for seed in runs if seed in uniform]
    late = [d for result in runs.values() for d in delays(result, result["every"])]
    return {
        "arm": name,
        "seeds": sorted(runs),
        "score": spread([score(result) for result in runs.values()]),
        "benchmarks": {
            benchmark: mean(result["judged"][benchmark]["value"] for result in runs.values())
            for benchmark in _benchmarks(runs.values())
        },
        "gains": {base: _gains(against[base], runs) for base in LEFT_ALONE},
        "gaps": {
            reference: {
                seed: gap_closed(score(uniform[seed]), score(found[seed]), score(runs[seed]))
                for seed in both
                if seed in found
            }
            for reference, found in against.items()
            if reference not in LEFT_ALONE
        },
        "reach": {seed: _reach(runs[seed], against) for seed in runs},
        "interventions": [interventions(result) for result in runs.values()],
        "delay_steps": [delay["steps"] for delay in late],
        "delay_parts": [delay["part"] for delay in late],
        "charged": [result["charged"] for result in runs.values()],
        "tokens": [result["tokens"] for result in runs.values()],
    }


def _gains(base: Mapping[int, Json], runs: Mapping[int, Json]) -> dict[int, Json]:
    gains = {seed: paired_gain(base[seed], runs[seed]) for seed in runs if seed in base}
    return {seed: {"gain": gain, "stderr": error} for seed, (gain, error) in gains.items()}


def _benchmarks(results: Iterable[Json]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["judged"]))


def _reach(result: Json, against: Mapping[str, Mapping[int, Json]]) -> Json:
    """Tokens, own and all, to the final score of each reference, on the steering items' curve."""
    reached: Json = {}
    for name, found in against.items():
        if name not in LEFT_ALONE and result["seed"] in found:
            level = found[result["seed"]]["curve"][-1][1]
            own = tokens_to_reach(result["curve"], level)
            total = None if own is None else own + result["charged"]
            reached[name] = {"own": own, "total": total}
    return reached


def spread(values: Sequence[float]) -> Json:
    """Mean and standard deviation over seeds (None of one)."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}


def moved(result: Json) -> float:
    """Total variation between the start and the mixture of the run's last quarter, by tokens."""
    begin, end = (1 - LAST_ORDERS) * result["tokens"], result["tokens"]
    segments = result["segments"]
    total: dict[str, float] = {}
    for index, segment in enumerate(segments):
        until = segments[index + 1]["tokens"] if index + 1 < len(segments) else end
        tokens = max(0.0, min(until, end) - max(segment["tokens"], begin))
        for name, weight in segment["weights"].items():
            total[name] = total.get(name, 0.0) + tokens * weight
    average = {name: amount / sum(total.values()) for name, amount in total.items()}
    return total_variation(segments[0]["weights"], average)


def flat_row(name: str, runs: Mapping[int, Json]) -> Json:
    """False moves: how far each run ended from its start where nothing is to be gained."""
    far = {seed: moved(result) for seed, result in runs.items()}
    return {
        "arm": name,
        "moved": far,
        "beyond": sum(distance > MOVED for distance in far.values()),
        "runs": len(far),
        "interventions": [interventions(result) for result in runs.values()],
    }


def twin_pairs(first: Json, second: Json, decay: float) -> Json:
    """Two runs that differ by their data order alone: differences by checkpoint, with their z.

    ``z`` counts the items' error only; ``z_jitter`` also each run's own jitter around its course
    (0 where too few checkpoints tell it), which no item shows.
    """
    shaken = [jitter(result, decay) or 0.0 for result in (first, second)]
    own = math.hypot(*shaken)
    points = zip(first["items"], second["items"], first["curve"], strict=False)
    differences = [(point[0], *paired_items(a, b)) for a, b, point in points]
    last = (first["tokens"], *paired_gain(first, second))
    told = [
        {
            **{"tokens": tokens, "gain": gain, "stderr": error},
            **{"z": gain / error, "z_jitter": gain / math.hypot(error, own)},
        }
        for tokens, gain, error in (*differences, last)
    ]
    return {"jitter": shaken, "checkpoints": told[:-1], "final": told[-1]}


def coverage(pairs: Sequence[Json], which: str = "z", limit: float = 1.96) -> Json:
    """How often the 95% intervals of unchanged twins hold 0, by the items' error or all of it."""
    points = [point[which] for pair in pairs for point in pair["checkpoints"]]
    finals = [pair["final"][which] for pair in pairs]
    ever = [any(abs(p[which]) > limit for p in pair["checkpoints"]) for pair in pairs]
    return {
        "pairs": len(pairs),
        "checkpoints": mean(abs(value) <= limit for value in points) if points else None,
        "final": mean(abs(value) <= limit for value in finals) if finals else None,
        "runs_with_a_false_alarm": sum(ever),
        "sd_of_z": stdev(points) if len(points) > 1 else None,
    }


def jitter(result: Json, decay: float) -> float | None:
    """The standard deviation of one checkpoint's score around the run's smooth course.

    From second differences of the steering curve before the decay (their variance is six times a
    point's), a fifth of the run's start left out; None of fewer than three.
    """
    stable = [
        bits for at, bits in result["curve"]
        if 0.2 * result["tokens"] <= at <= (1 - decay) * result["tokens"]
    ]  # fmt: skip
    seconds = [a - 2 * b + c for a, b, c in zip(stable, stable[1:], stable[2:], strict=False)]
    return math.sqrt(mean(d * d for d in seconds) / 6) if len(seconds) >= 3 else None

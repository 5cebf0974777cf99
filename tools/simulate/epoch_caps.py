"""One run with the ledger reporting and enforcing, side by side: what the cap on epochs changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixloop.common.types import Json

MOST = 8  # spans that are shown; a run with more stretches is shown in equal parts
SAME = 5e-4  # shares this close are not worth a line
LESS = 0.005  # epochs


def compare_ledgers(reporting: Json, enforcing: Json) -> Json:
    """Both runs over the same spans of tokens.

    Args:
        reporting, enforcing: results of ``contest.run_task`` for one policy.

    Returns:
        ``reporting`` and ``enforcing``: per span ``from``, ``until``, mean ``weights`` in it and
        ``epochs`` per source at its end. ``changed``: per source whose epochs differ at the end,
        the epochs of both and per span where the shares differ the two shares.
    """
    spans = _spans(reporting["stretches"])
    sides = [_over(run["stretches"], spans) for run in (reporting, enforcing)]
    return {"reporting": sides[0], "enforcing": sides[1], "changed": _changed(*sides)}


def _spans(stretches: Sequence[Json]) -> list[tuple[int, int]]:
    if len(stretches) <= MOST:
        return [(one["from"], one["until"]) for one in stretches]
    end = stretches[-1]["until"]
    return [(end * n // MOST, end * (n + 1) // MOST) for n in range(MOST)]


def _over(stretches: Sequence[Json], spans: Sequence[tuple[int, int]]) -> list[Json]:
    return [
        {
            "from": start,
            "until": until,
            "weights": _mean_weights(stretches, start, until),
            "epochs": _epochs_at(stretches, until),
        }
        for start, until in spans
    ]


def _mean_weights(stretches: Sequence[Json], start: int, until: int) -> dict[str, float]:
    shares = dict.fromkeys(stretches[0]["weights"], 0.0)
    for one in stretches:
        overlap = max(0, min(until, one["until"]) - max(start, one["from"]))
        for name, weight in one["weights"].items():
            shares[name] += weight * overlap / (until - start)
    return shares


def _epochs_at(stretches: Sequence[Json], tokens: int) -> dict[str, float]:
    before = dict.fromkeys(stretches[0]["epochs"], 0.0)
    for one in stretches:
        if one["until"] >= tokens:
            part = (tokens - one["from"]) / (one["until"] - one["from"])
            return {n: before[n] + part * (one["epochs"][n] - before[n]) for n in before}
        before = one["epochs"]
    return dict(before)


def _changed(reporting: Sequence[Json], enforcing: Sequence[Json]) -> list[Json]:
    found = []
    for name, epochs in reporting[-1]["epochs"].items():
        held = enforcing[-1]["epochs"][name]
        if abs(held - epochs) < LESS:
            continue
        pairs = zip(reporting, enforcing, strict=True)
        spans = [
            {
                "from": free["from"],
                "until": free["until"],
                "reported": free["weights"][name],
                "enforced": kept["weights"][name],
            }
            for free, kept in pairs
            if abs(free["weights"][name] - kept["weights"][name]) >= SAME
        ]
        found.append({"source": name, "reported": epochs, "enforced": held, "spans": spans})
    return sorted(found, key=lambda one: one["enforced"] - one["reported"])


def shown_sources(spans: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sources that were ever read, in the run's order."""
    last: Mapping[str, float] = spans[-1]["epochs"]
    return [name for name, epochs in last.items() if epochs > 0]

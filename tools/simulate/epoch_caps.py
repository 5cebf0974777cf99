"""One run with the ledger reporting and enforcing, side by side: what the cap on epochs changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixloop.common.types import Json

MAX_SPANS = 8  # that are shown; a run with more is shown in so many equal parts
MIN_SHARE = 5e-4  # of a difference in shares that is worth a line
MIN_EPOCHS = 0.005


def compare_ledgers(reporting: Json, enforcing: Json) -> Json:
    """Both runs over the same spans of tokens.

    Args:
        reporting: a policy's run, as :func:`tasks.run_task` returns it.
        enforcing: the same policy's under the cap.

    Returns:
        ``reporting`` and ``enforcing``: per span ``from``, ``until``, mean ``weights`` in it and
        ``epochs`` per source at its end. ``changed``: per source whose epochs differ at the end,
        the epochs of both and per span where the shares differ the two shares.
    """
    bounds = _bounds(reporting["spans"])
    free, capped = (_over(run["spans"], bounds) for run in (reporting, enforcing))
    return {"reporting": free, "enforcing": capped, "changed": _changed(free, capped)}


def _bounds(spans: Sequence[Json]) -> list[tuple[int, int]]:
    if len(spans) <= MAX_SPANS:
        return [(span["from"], span["until"]) for span in spans]
    end = spans[-1]["until"]
    return [(end * n // MAX_SPANS, end * (n + 1) // MAX_SPANS) for n in range(MAX_SPANS)]


def _over(spans: Sequence[Json], bounds: Sequence[tuple[int, int]]) -> list[Json]:
    return [
        {
            "from": start,
            "until": until,
            "weights": _mean_weights(spans, start, until),
            "epochs": _epochs_at(spans, until),
        }
        for start, until in bounds
    ]


def _mean_weights(spans: Sequence[Json], start: int, until: int) -> dict[str, float]:
    shares = dict.fromkeys(spans[0]["weights"], 0.0)
    for span in spans:
        overlap = max(0, min(until, span["until"]) - max(start, span["from"]))
        for name, weight in span["weights"].items():
            shares[name] += weight * overlap / (until - start)
    return shares


def _epochs_at(spans: Sequence[Json], tokens: int) -> dict[str, float]:
    before = dict.fromkeys(spans[0]["epochs"], 0.0)
    for span in spans:
        if span["until"] >= tokens:
            part = (tokens - span["from"]) / (span["until"] - span["from"])
            return {n: before[n] + part * (span["epochs"][n] - before[n]) for n in before}
        before = span["epochs"]
    return dict(before)


def _changed(reporting: Sequence[Json], enforcing: Sequence[Json]) -> list[Json]:
    changed = []
    for name, epochs in reporting[-1]["epochs"].items():
        enforced = enforcing[-1]["epochs"][name]
        if abs(enforced - epochs) < MIN_EPOCHS:
            continue
        spans = [
            {
                "from": free["from"],
                "until": free["until"],
                "reported": free["weights"][name],
                "enforced": capped["weights"][name],
            }
            for free, capped in zip(reporting, enforcing, strict=True)
            if abs(free["weights"][name] - capped["weights"][name]) >= MIN_SHARE
        ]
        changed.append({"source": name, "reported": epochs, "enforced": enforced, "spans": spans})
    return sorted(changed, key=lambda change: change["enforced"] - change["reported"])


def shown_sources(spans: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sources that were ever read, in the run's order."""
    last: Mapping[str, float] = spans[-1]["epochs"]
    return [name for name, epochs in last.items() if epochs > 0]

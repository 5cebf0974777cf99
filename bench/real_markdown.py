"""The tables of `bench/real.py` for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

import real_table
from real_arms import REFERENCES, STARTS

Json = dict[str, Any]
Results = Mapping[str, Mapping[str, Mapping[int, Json]]]
"""By kind of run, arm and seed."""

DECAY = 0.2  # of a run, at its end


def tables(results: Results) -> Json:
    """Everything the results say, as data."""
    references = results.get("reference", {})
    against = {name: references.get(name, {}) for name in REFERENCES}
    found: Json = {}
    for start in STARTS:
        arms = results.get(start, {})
        base = {"start": arms.get("static", {}), **against}
        rows = [real_table.row(name, runs, base) for name, runs in arms.items()]
        if rows or start == STARTS[0]:
            rows += [real_table.row(name, runs, base) for name, runs in references.items()]
        found[start] = rows
    found["flat"] = [real_table.flat_row(n, runs) for n, runs in results.get("flat", {}).items()]
    found["twins"] = _twins(results.get("twins", {}).get("static", {}))
    every = [run for arms in results.values() for runs in arms.values() for run in runs.values()]
    shaken = [j for run in every if (j := real_table.jitter(run, DECAY)) is not None]
    found["jitter"] = median(shaken) if shaken else None
    return found


def _twins(runs: Mapping[int, Json]) -> Json:
    pairs = [
        real_table.twin_pairs(runs[seed], runs[seed + 1], DECAY)
        for seed in sorted(runs)
        if seed % 2 == 0 and seed + 1 in runs
    ]
    errors = {"items": "z", "items and jitter": "z_jitter"}
    told = {name: real_table.coverage(pairs, which) for name, which in errors.items()}
    return {"pairs": pairs, "coverage": told} if pairs else {}


def markdown(found: Json, missing: Sequence[str]) -> str:
    """The tables as text, and what is missing."""
    lines: list[str] = []
    for start in STARTS:
        if found[start]:
            lines += [f"From {start}:", "", *_main(found[start]), ""]
    if found["flat"]:
        lines += ["All sources alike:", "", *_flat(found["flat"]), ""]
    if found["twins"]:
        lines += [f"{len(found['twins']['pairs'])} unchanged pairs:", ""]
        lines += [*_coverage(found["twins"]["coverage"]), ""]
    if found["jitter"] is not None:
        lines += [f"Jitter of a checkpoint's score, median over runs: {found['jitter']:.4f}", ""]
    lines += ["Missing:", *(f"- {line}" for line in missing)] if missing else []
    return "\n".join(lines).rstrip() + "\n"


def _main(rows: Sequence[Json]) -> Iterator[str]:
    benchmarks = list(dict.fromkeys(name for row in rows for name in row["benchmarks"]))
    heads = (
        *("arm", "seeds", "bits per byte", *benchmarks, "gain over the start, ± items"),
        *("gap to search", "gap to hand-made", "own tokens to search's end (in all)"),
        *("own tokens to hand-made's end (in all)", "interventions"),
        *("delay, steps (of interval)", "charged tokens"),
    )
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        each = [row["benchmarks"].get(name) for name in benchmarks]
        cells = (
            row["arm"],
            ", ".join(map(str, row["seeds"])),
            _spread(row["score"]),
            *("-" if value is None else f"{value:.3f}" for value in each),
            _listed(f"{g['gain']:+.3f} ± {g['stderr']:.3f}" for g in row["gain"].values()),
            *(_gaps(row["gaps"].get(name, {})) for name in ("search", "hand-made")),
            *(_reach(row["reach"], name) for name in ("search", "hand-made")),
            _listed(map(str, row["interventions"])),
            _delay(row),
            _listed(f"{tokens:,}" for tokens in row["charged"]),
        )
        yield "| " + " | ".join(cells) + " |"


def _listed(texts: Any) -> str:
    return ", ".join(texts) or "-"


def _spread(value: Json) -> str:
    return f"{value['mean']:.4f}" + ("" if value["sd"] is None else f" (sd {value['sd']:.4f})")


def _gaps(gaps: Mapping[int, float | None]) -> str:
    told = [gap for gap in gaps.values() if gap is not None]
    none = len(gaps) - len(told)
    parts = [f"{gap:.2f}" for gap in told] + ["no gap"] * none
    return _listed(parts) + (f" (mean {mean(told):.2f})" if len(told) > 1 else "")


def _reach(reach: Mapping[int, Json], name: str) -> str:
    cells = []
    for by_reference in reach.values():
        if name in by_reference:
            own, total = by_reference[name]["own"], by_reference[name]["total"]
            cells.append("never" if own is None else f"{own:,.0f} ({total:,.0f})")
    return _listed(cells)


def _delay(row: Json) -> str:
    if not row["delay_steps"]:
        return "-"
    steps, parts = row["delay_steps"], row["delay_parts"]
    return f"{median(steps):.0f} ({median(parts):.2f}), most {max(steps)}"


def _flat(rows: Sequence[Json]) -> Iterator[str]:
    yield "| arm | runs | moved beyond 0.05 | total variation, by seed | interventions |"
    yield "|---|---|---|---|---|"
    for row in rows:
        far = _listed(f"{distance:.3f}" for distance in row["moved"].values())
        made = _listed(map(str, row["interventions"]))
        yield f"| {row['arm']} | {row['runs']} | {row['beyond']} | {far} | {made} |"


def _coverage(told: Mapping[str, Json]) -> Iterator[str]:
    yield "| error of | 0 held at checkpoints | at the end | sd of z | pairs with a false alarm |"
    yield "|---|---|---|---|---|"
    for name, found in told.items():
        held, last, sd = found["checkpoints"], found["final"], found["sd_of_z"]
        cells = (*(_part(held), _part(last)), "-" if sd is None else f"{sd:.2f}")
        yield f"| {name} | {' | '.join(cells)} | {found['runs_with_a_false_alarm']} |"


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"

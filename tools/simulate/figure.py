"""Simulated runs as one picture: how far each policy came over tokens, and its mixtures.

One column per world. Above, per policy the median over seeds of what it still loses against the
best constant mixture at the same token (against the start kept, where a world has no optimum), with
a band from the 10th to the 90th percentile. Below, each policy's mixture on the first seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixloop.common.types import Json
from mixloop.controller.report import CURVES, canvas, plain, stack_shares, token_axis

from .scores import quantile

Curve = list[tuple[float, float]]


Runs = Mapping[tuple[str, str], Sequence[Json]]


def draw(runs: Runs, references: Mapping[str, Sequence[Json]], out: Path) -> Path:
    """Draw runs by policy and world, and each world's references; PNG or SVG by ``out``'s suffix.

    Args:
        runs: results of :func:`tasks.run_task` over seeds.
        references: the same for the tasks without a policy.
        out: the file; its folder is made.
    """
    policies = list(dict.fromkeys(policy for policy, _ in runs))
    rows = 1 + len(policies)
    with canvas(out, 5.2 * len(references) + 2, 3.4 + 2.1 * rows, dpi=130) as figure:
        heights = [3.0] + [2.0] * len(policies)
        grid = figure.subplots(rows, len(references), squeeze=False, height_ratios=heights)
        for column, world in enumerate(references):
            by_policy = {policy: runs[policy, world] for policy in policies}
            _column([line[column] for line in grid], world, by_policy, references[world])
    return out


def _column(
    axes: Sequence[Any], world: str, runs: Mapping[str, Sequence[Json]], references: Sequence[Json]
) -> None:
    against = "optimum_curve" if references[0]["optimum_curve"] else "control_curve"
    base = [reference[against] for reference in references]
    if against == "optimum_curve":
        start = [reference["control_curve"] for reference in references]
        _curve(axes[0], "start kept", start, base, "#777777")
    for number, (policy, seeds) in enumerate(runs.items()):
        colour = CURVES[number % len(CURVES)]
        _curve(axes[0], policy, [run["curve"] for run in seeds], base, colour)
        _mixture(axes[number + 1], policy, seeds[0]["spans"])
    axes[0].axhline(0, color="#333333", linewidth=0.8)
    axes[0].set_title(plain(world))
    name = "the best constant mixture" if against == "optimum_curve" else "the start kept"
    axes[0].set_ylabel(f"loss above {name}")
    if all(abs(y) < 1e-9 for line in axes[0].lines for y in line.get_ydata()):
        said = "in this world mixtures make no difference"
        axes[0].text(0.5, 0.6, said, transform=axes[0].transAxes, ha="center", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    token_axis(axes[0], references[0]["control_curve"][-1][0])


def _curve(
    axes: Any, label: str, curves: Sequence[Curve], base: Sequence[Curve], colour: str
) -> None:
    tokens = [at for at, _ in curves[0]]
    columns = []
    for n in range(len(tokens)):
        over = [curve[n][1] - low[n][1] for curve, low in zip(curves, base, strict=True)]
        columns.append(sorted(over))
    middle = [quantile(column, 0.5) for column in columns]
    axes.plot(tokens, middle, color=colour, linewidth=1.6, label=plain(label))
    if len(curves) > 1:
        low, high = ([quantile(column, q) for column in columns] for q in (0.1, 0.9))
        axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)


def _mixture(axes: Any, policy: str, spans: Sequence[Json]) -> None:
    edges = [spans[0]["from"], *(span["until"] for span in spans)]
    shares = {name: [span["weights"][name] for span in spans] for name in spans[0]["weights"]}
    beside = {"bbox_to_anchor": (1.0, 1.0), "fontsize": 7}
    stack_shares(axes, edges, shares, unused=False, linewidth=0.4, **beside)
    axes.set_ylabel("mixture")
    axes.set_title(plain(policy), fontsize=10)
    token_axis(axes, edges[-1])

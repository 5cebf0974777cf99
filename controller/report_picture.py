"""Epochs of every source over the run, against the cap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixloop.controller.picture import BLACK, CURVES, STYLE, plain, token_axis

MOST = 12  # sources that are drawn: the ones repeated most


def draw_epochs(
    drawn: Sequence[dict[str, Any]], out: Path, budget: int, limit: float | None
) -> Path:
    """Draw it.

    Args:
        drawn: ``{"tokens", "epochs": {source: epochs}}`` at each checkpoint, oldest first.
        out: an SVG or PNG file.
        budget: tokens of the whole run, the right end of the axis.
        limit: the cap on epochs, or None.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    last = drawn[-1]["epochs"]
    names = sorted(last, key=lambda name: -last[name])[:MOST]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for place, name in enumerate(names):
            points = [(one["tokens"], one["epochs"].get(name, 0.0)) for one in drawn]
            style = ("-", "--", ":")[place // len(CURVES) % 3]
            x, y = zip((0, 0.0), *points, strict=True)
            axes.plot(x, y, style, color=CURVES[place % len(CURVES)], label=plain(name), lw=1.6)
        if limit is not None:
            axes.axhline(limit, color=BLACK, lw=1, ls=(0, (4, 3)))
            axes.annotate(f"cap {limit:g}", (0, limit), xytext=(4, 3), textcoords="offset points")
        axes.set_ylabel("epochs")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        token_axis(axes, budget)
        metadata = {"Date": None} if out.suffix == ".svg" else {}
        figure.savefig(out, metadata=metadata)
    return out

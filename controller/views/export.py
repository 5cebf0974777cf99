"""``mixloop export``: the schedule that a run discovered, as stages that another run can follow.

(What Ray's population-based training calls replaying a schedule: Jaderberg et al. 2017, arXiv
1711.09846.)
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import yaml

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.common.units import format_tokens, parse_tokens
from mixloop.contract import SCALE, ScheduleError, read_schedule, read_status

from .opening import open_run

DIGITS = 9  # of a share: finer than the integers over 2^24 that it is


def export_run(target: Path, scale: str | None = None) -> Json:
    """The mixtures as applied, as a policy section.

    ``scale`` is the budget of the run that shall use it; the spans are stretched in proportion.

    Raises:
        BadInput: no such run, nothing trained yet, or a damaged schedule.
    """
    paths, _ = open_run(target)
    try:
        schedule = read_schedule(paths.schedule)
    except (ScheduleError, OSError) as error:
        raise BadInput(str(error)) from None
    opened, status = schedule.latest_open, read_status(paths.status).value
    if opened is None or status is None or not schedule.segments:
        raise BadInput(f"{target}: no trainer has run here, so there is no schedule to export")
    reached = [segment for segment in schedule.segments if segment.sample <= status.sample]
    factor = Fraction(1)
    if scale is not None:
        try:
            factor = Fraction(parse_tokens(scale), status.budget)
        except ValueError as error:
            raise BadInput(f"--scale: {error}") from None
    stages: list[Json] = []
    for place, segment in enumerate(reached):
        stage: Json = {"name": _name(place, segment.generation)}
        if place + 1 < len(reached):
            end = reached[place + 1].sample * opened.sequence_length
            stage["until"] = int(end * factor)
        stage["weights"] = _shares(segment.weights)
        if stages and stages[-1]["weights"] == stage["weights"]:
            stage["name"] = stages.pop()["name"]
        stages.append(stage)
    return {"run": status.run, "policy": {"use": "rules", "with": {"stages": stages}}}


def _name(place: int, generation: int) -> str:
    return "start" if place == 0 else f"generation-{generation}-{place}"


def _shares(units: Mapping[str, int]) -> dict[str, float]:
    """Shares that sum to 1 as written: rounding is given to the largest."""
    shares = {name: round(n / SCALE, DIGITS) for name, n in units.items() if n}
    largest = max(shares, key=lambda name: shares[name])
    shares[largest] = round(shares[largest] + 1 - sum(shares.values()), DIGITS)
    return shares


def export_text(exported: Json) -> str:
    """The section as YAML for run.yaml, with where each stage ends in a comment's words."""
    stages = exported["policy"]["with"]["stages"]
    ends = [format_tokens(stage["until"]) for stage in stages if "until" in stage]
    head = f"# the mixtures of run {exported['run']}, as applied"
    if ends:
        head += f"; they change at {', '.join(ends)} tokens"
    body = yaml.safe_dump({"policy": exported["policy"]}, sort_keys=False, width=100)
    return f"{head}\n{body}"

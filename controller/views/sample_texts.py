"""``mixloop samples``: what checkpoints write, side by side, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common import text
from mixloop.common.errors import BadInput
from mixloop.evals.scoring import Sample, Samples

from . import tables

if TYPE_CHECKING:
    from rich.table import Table


_SUFFIX = ".samples.json"


def read_samples(targets: Sequence[Path], steps: Sequence[int]) -> list[Samples]:
    """The samples files that the targets name, or hold: a run's first and last when not told.

    Raises:
        BadInput: when there are none, or a file is none.
    """
    found = [one for target in targets for one in _of(target, steps)]
    if not found:
        wanted = f" at step {', '.join(map(str, steps))}" if steps else ""
        raise BadInput(
            f"{targets[0]}: no samples{wanted}; they are written beside each scorecard "
            "unless evals.samples is false"
        )
    return found


def _of(target: Path, steps: Sequence[int]) -> list[Samples]:
    if target.name.endswith(_SUFFIX):
        return [_read(target)]
    if target.is_file():
        from mixloop.controller.config import load_config

        target = load_config(target).run.dir
    if not target.is_dir():
        raise BadInput(f"{target}: no run here; give a run folder, its run.yaml or a samples file")
    paths = sorted((target / "scorecards").glob(f"*{_SUFFIX}"))
    if not steps:
        # one file is both the first and the last
        return [_read(path) for path in dict.fromkeys((*paths[:1], *paths[-1:]))]
    return [one for one in map(_read, paths) if one.step in steps]


def _read(path: Path) -> Samples:
    try:
        return Samples.read(path)
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(str(error).splitlines()[0]) from None


def samples_table(found: Sequence[Samples]) -> Table:
    """One row per prompt and way of writing, one column per checkpoint."""
    made = tables.table("Samples", ("domain", "prompt", "how", *(_head(one) for one in found)))
    asked = dict.fromkeys((s.domain, s.prompt) for one in found for s in one.samples)
    for domain, prompt in asked:
        own = [_at(one, domain, prompt) for one in found]
        greedy = [tables.cell("-" if s is None else s.greedy or s.reason) for s in own]
        sampled = [tables.cell("-" if s is None else s.sampled or s.reason) for s in own]
        made.add_row(domain, tables.cell(prompt), "greedy", *greedy)
        made.add_row("", "", "sampled", *sampled, end_section=True)
    return made


def _head(one: Samples) -> str:
    if one.step is None:
        return tables.cell(Path(one.checkpoint).name)
    return f"step {one.step} ({text.tokens(one.tokens)})"


def _at(one: Samples, domain: str, prompt: str) -> Sample | None:
    return next((s for s in one.samples if (s.domain, s.prompt) == (domain, prompt)), None)

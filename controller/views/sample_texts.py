"""``mixloop samples``: what checkpoints write, side by side, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common import text
from mixloop.common.errors import BadInput
from mixloop.evals.scoring import Sample, Samples

from . import tables
from .opening import run_folder

if TYPE_CHECKING:
    from rich.table import Table


_SUFFIX = ".samples.json"


def read_samples(targets: Sequence[Path], steps: Sequence[int]) -> list[Samples]:
    """The samples files that the targets name, or hold: a run's first and last when not told.

    Raises:
        BadInput: when there are none, or a file is none.
    """
    files = [samples for target in targets for samples in _of(target, steps)]
    if not files:
        wanted = f" at step {', '.join(map(str, steps))}" if steps else ""
        raise BadInput(
            f"{targets[0]}: no samples{wanted}; they are written beside each scorecard "
            "unless evals.samples is false"
        )
    return files


def _of(target: Path, steps: Sequence[int]) -> list[Samples]:
    if target.name.endswith(_SUFFIX):
        return [_read(target)]
    if target.is_file():
        target = run_folder(target).dir
    if not target.is_dir():
        raise BadInput(f"{target}: no run here; give a run folder, its run.yaml or a samples file")
    paths = sorted((target / "scorecards").glob(f"*{_SUFFIX}"))
    if not steps:
        # one file is both the first and the last
        return [_read(path) for path in dict.fromkeys((*paths[:1], *paths[-1:]))]
    return [samples for samples in map(_read, paths) if samples.step in steps]


def _read(path: Path) -> Samples:
    try:
        return Samples.read(path)
    except OSError as error:
        raise BadInput(f"{path}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(str(error).splitlines()[0]) from None


def samples_table(checkpoints: Sequence[Samples]) -> Table:
    """One row per prompt and way of writing, one column per checkpoint."""
    table = tables.table("Samples", ("domain", "prompt", "how", *map(_head, checkpoints)))
    prompts = dict.fromkeys(
        (s.domain, s.prompt) for samples in checkpoints for s in samples.samples
    )
    for domain, prompt in prompts:
        row = [_at(checkpoint, domain, prompt) for checkpoint in checkpoints]
        greedy = [tables.cell("-" if s is None else s.greedy or s.reason) for s in row]
        sampled = [tables.cell("-" if s is None else s.sampled or s.reason) for s in row]
        table.add_row(domain, tables.cell(prompt), "greedy", *greedy)
        table.add_row("", "", "sampled", *sampled, end_section=True)
    return table


def _head(samples: Samples) -> str:
    if samples.step is None:
        return tables.cell(Path(samples.checkpoint).name)
    return f"step {samples.step} ({text.tokens(samples.tokens)})"


def _at(samples: Samples, domain: str, prompt: str) -> Sample | None:
    return next((s for s in samples.samples if (s.domain, s.prompt) == (domain, prompt)), None)

"""The world ``regmix:FOLDER``: real runs on constant mixtures, from tables such as RegMix's.

A table of mixtures and one of losses, as CSV; RegMix's are found by their file names. Importing
this makes the world known; the folder is read when one is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixloop.common.errors import BadInput
from mixloop.policies.interface import PolicyError
from mixloop.policies.worlds import RunTable, Setting, World, parse_options, register_world

Array = NDArray[np.float64]

SIZE = "60m"
TOLERANCE = 0.05  # published shares are rounded; further from 1 than this they are no mixture


@dataclass(frozen=True)
class Runs:
    """Runs, one a row: ``mixtures`` (n, k) over ``sources``, ``losses`` (n, m) over ``domains``."""

    sources: tuple[str, ...]
    domains: tuple[str, ...]
    mixtures: Array
    losses: Array

    def __len__(self) -> int:
        """How many runs."""
        return len(self.mixtures)

    def first(self, count: int) -> Runs:
        """The first so many runs."""
        return Runs(self.sources, self.domains, self.mixtures[:count], self.losses[:count])


def build(argument: str, setting: Setting) -> World:
    """The world of ``FOLDER`` or ``FOLDER,size=1m,sigma=0.02``.

    Raises:
        PolicyError: the folder holds no such tables.
    """
    folder, _, rest = argument.partition(",")
    options = parse_options(rest, f"regmix:{argument}")
    try:
        runs = _read_folder(Path(folder).expanduser(), str(options.pop("size", SIZE)))
    except BadInput as error:
        raise PolicyError(f"world: {error}") from None
    if setting.segments:
        options.setdefault("segments", setting.segments)
    if setting.budget:
        options.setdefault("unit", max(1, setting.budget // options.get("segments", 40)))
    return RunTable(runs.sources, runs.domains, runs.mixtures, runs.losses, **options)


register_world("regmix", build)


def _read_folder(folder: Path, size: str) -> Runs:
    """The runs of one model size in a folder of RegMix's tables."""
    mixtures, losses = (sorted(folder.glob(f"*{kind}*_{size}.csv")) for kind in ("mixture", "loss"))
    if len(mixtures) != 1 or len(losses) != 1:
        raise BadInput(
            f"regmix: {folder}: needs one *mixture*_{size}.csv and one *loss*_{size}.csv; "
            "give RegMix's folder of tables, as regmix:FOLDER or regmix:FOLDER,size=1m"
        )
    return read_runs(mixtures[0], losses[0])


def read_runs(mixtures: Path, losses: Path) -> Runs:
    """Read the two tables; rows are matched by their first column, common affixes of names cut.

    Raises:
        BadInput: a file that can't be read, rows that don't match, or shares that are no mixture.
    """
    sources, runs, weights = _table(mixtures)
    domains, scored, values = _table(losses)
    if runs != scored:
        odd = next(iter(set(runs) ^ set(scored)), "order")
        raise BadInput(f"{losses}: its runs are not those of {mixtures} (see {odd})")
    totals = weights.sum(axis=1)
    if (weights < 0).any() or (abs(totals - 1) > TOLERANCE).any():
        run = runs[int(np.argmax(abs(totals - 1)))]
        raise BadInput(f"{mixtures}: run {run}: no mixture; shares are at least 0 and sum to 1")
    return Runs(_bare(sources), _bare(domains), weights / totals[:, None], values)


def _table(path: Path) -> tuple[list[str], list[str], Array]:
    """Names of the columns, names of the rows, and the numbers between them."""
    try:
        cells = np.loadtxt(path, str, delimiter=",", comments=None, encoding="utf-8", quotechar='"')
        numbers = cells[1:, 1:].astype(float)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    except (ValueError, IndexError) as error:
        raise BadInput(f"{path}: no table of numbers: {error}") from None
    return list(cells[0, 1:]), list(cells[1:, 0]), numbers


def _bare(names: Sequence[str]) -> tuple[str, ...]:
    """Names without what they all begin and end with (``train_the_pile_``, ``_val_loss``)."""
    if len(names) < 2:
        return tuple(names)
    front, back = _shared(names), _shared([name[::-1] for name in names])
    return tuple(name[front : len(name) - back] or name for name in names)


def _shared(names: Sequence[str]) -> int:
    """How many characters all names begin with alike."""
    columns = map(set, zip(*names, strict=False))  # as far as the shortest goes
    return len(list(takewhile(lambda characters: len(characters) == 1, columns)))

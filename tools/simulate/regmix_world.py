"""The world ``regmix:FOLDER``: real runs from tables the user has, RegMix's by their file names.

Importing this makes the world known; the folder is read when one is built.


Tables of runs on constant mixtures, such as RegMix's: a CSV of mixtures and one of losses.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixloop.common.errors import BadInput
from mixloop.policies.worlds import RunTable, Setting, World, parse_options, register_world

SIZE = "60m"


def read_folder(folder: Path, size: str) -> Runs:
    """The runs of one model size in a folder of RegMix's tables.

    Raises:
        BadInput: not exactly one table of mixtures and one of losses of that size there.
    """
    pair = [sorted(folder.glob(f"*{kind}*_{size}.csv")) for kind in ("mixture", "loss")]
    if any(len(found) != 1 for found in pair):
        raise BadInput(
            f"regmix: {folder}: needs one *mixture*_{size}.csv and one *loss*_{size}.csv; "
            "give RegMix's folder of tables, as regmix:FOLDER or regmix:FOLDER,size=1m"
        )
    return read_runs(pair[0][0], pair[1][0])


def build(argument: str, setting: Setting) -> World:
    """The world of ``FOLDER`` or ``FOLDER,size=1m,sigma=0.02``."""
    folder, _, rest = argument.partition(",")
    options = parse_options(rest, f"regmix:{argument}")
    runs = read_folder(Path(folder).expanduser(), str(options.pop("size", SIZE)))
    if setting.segments:
        options.setdefault("segments", setting.segments)
    if setting.budget:
        options.setdefault("unit", max(1, setting.budget // options.get("segments", 40)))
    return RunTable(runs.sources, runs.domains, runs.mixtures, runs.losses, **options)


register_world("regmix", build)

Array = NDArray[np.float64]

TOLERANCE = 0.05  # published shares are rounded; further from 1 than this they are no mixture


@dataclass(frozen=True)
class Runs:
    """Runs, one a row: ``mixtures`` (n, k) over ``sources``, ``losses`` (n, m) over ``domains``."""

    sources: tuple[str, ...]
    domains: tuple[str, ...]
    mixtures: Array
    losses: Array

    def __len__(self) -> int:
        return len(self.mixtures)

    def first(self, count: int) -> Runs:
        """The first so many runs."""
        return Runs(self.sources, self.domains, self.mixtures[:count], self.losses[:count])


def read_runs(mixtures: Path, losses: Path) -> Runs:
    """Read the two tables; rows are matched by their first column, common affixes of names cut.

    Raises:
        BadInput: a file that can't be read, rows that don't match, or shares that are no mixture.
    """
    sources, shares = _table(mixtures)
    domains, values = _table(losses)
    if list(shares) != list(values):
        odd = next(iter(set(shares) ^ set(values)), "order")
        raise BadInput(f"{losses}: its runs are not those of {mixtures} (see {odd})")
    weights = np.array(list(shares.values()))
    totals = weights.sum(axis=1)
    if (weights < 0).any() or (abs(totals - 1) > TOLERANCE).any():
        row = list(shares)[int(np.argmax(abs(totals - 1)))]
        raise BadInput(f"{mixtures}: run {row}: no mixture; shares are at least 0 and sum to 1")
    return Runs(
        _bare(sources), _bare(domains), weights / totals[:, None], np.array(list(values.values()))
    )


def _table(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        found = {row[0]: [float(cell) for cell in row[1:]] for row in rows if row}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BadInput(f"{path}: no table of numbers: {error}") from None
    odd = [name for name, cells in found.items() if len(cells) != len(header) - 1]
    if odd or not found:
        raise BadInput(
            f"{path}: run {odd[0]} has not one number a column" if odd else f"{path}: no run"
        )
    return header[1:], found


def _bare(names: Sequence[str]) -> tuple[str, ...]:
    """Names without what they all begin and end with (``train_the_pile_``, ``_val_loss``)."""
    if len(names) < 2:
        return tuple(names)
    front, back = _alike(names), _alike([name[::-1] for name in names])
    return tuple(name[front : len(name) - back] or name for name in names)


def _alike(names: Sequence[str]) -> int:
    """How many characters all names begin with alike."""
    columns = zip(*names, strict=False)  # as far as the shortest goes
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))

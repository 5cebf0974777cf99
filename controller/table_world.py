"""The world ``regmix:FOLDER``: real runs from tables the user has, RegMix's by their file names.

Importing this makes the world known; the folder is read when one is built.
"""

from __future__ import annotations

from pathlib import Path

from mixloop.controller.errors import BadInput
from mixloop.controller.tables import Runs, read_runs
from mixloop.policies.worlds import Setting, World, register_world
from mixloop.policies.worlds.registry import parse_options
from mixloop.policies.worlds.regmix import RunTable

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

"""The world of real runs: RegMix's tables read, and what is wrong with one that isn't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixloop.common.errors import BadInput
from mixloop.policies.interface import PolicyError
from mixloop.policies.worlds import RunTable, load_world
from mixloop.policies.worlds.conformance import check_world
from mixloop.policies.worlds.regmix import nearest_inside
from mixloop.tools.simulate.regmix_world import read_runs
from mixloop.tools.simulate.tasks import SimulationSetup


def table(folder: Path) -> None:
    drawing = np.random.default_rng(2)
    mixtures = drawing.dirichlet(np.ones(3), 40)
    losses = 3 + np.exp(mixtures @ np.array([[-1.0, 0.5], [0.5, -1.0], [0.3, 0.3]]))
    for name, head, rows in (
        ("a_mixture_60m.csv", "index,t_web,t_code,t_maths", mixtures),
        ("a_loss_60m.csv", "index,m/x_loss,m/y_loss", losses),
    ):
        lines = [f"{i}," + ",".join(f"{v:.6f}" for v in row) for i, row in enumerate(rows)]
        (folder / name).write_text("\n".join([head, *lines]) + "\n")


def test_a_table_of_runs_is_a_world_that_answers_inside_its_hull(tmp_path: Path) -> None:
    table(tmp_path)
    world = SimulationSetup("runs", f"regmix:{tmp_path},sigma=0.001", segments=4).world(0)
    assert isinstance(world, RunTable)
    assert list(world.sources) == ["web", "code", "maths"]
    assert list(world.benchmarks) == ["x", "y"]
    check_world(world)
    ran = world.mixtures[7]
    assert world.final(ran[None])[0] == pytest.approx(world.losses[7], abs=0.01)
    world.reset(0)
    world.advance({"web": 1.0}, world.budget)
    assert set(world.truth()) == {"x", "y"}
    assert world.outside == 1
    inside, whole = nearest_inside(np.array([1.0, 0.0, 0.0]), world.mixtures)
    assert not whole
    assert inside.sum() == pytest.approx(1.0)
    again, whole = nearest_inside(world.mixtures.mean(axis=0), world.mixtures)
    assert whole
    assert again == pytest.approx(world.mixtures.mean(axis=0))
    (tmp_path / "a_loss_60m.csv").unlink()
    with pytest.raises(PolicyError, match=r"^world: regmix: .* needs one"):
        load_world(f"regmix:{tmp_path}")


def test_tables_that_make_no_runs_say_why(tmp_path: Path) -> None:
    table(tmp_path)
    mixtures, losses = tmp_path / "a_mixture_60m.csv", tmp_path / "a_loss_60m.csv"
    assert read_runs(mixtures, losses).sources == ("web", "code", "maths")
    whole = mixtures.read_text()
    for text, problem in (
        (whole.replace("\n3,", "\n333,"), "its runs are not those of"),
        (whole.replace("\n3,0.", "\n3,1."), "run 3: no mixture"),
        (whole.replace("\n3,0.", "\n3,a."), "no table of numbers"),
        (whole.replace("\n3,0.", "\n3,0.1,0."), "no table of numbers"),
    ):
        mixtures.write_text(text)
        with pytest.raises(BadInput, match=problem):
            read_runs(mixtures, losses)

"""run.yaml edited while a run goes on, and between two starts of its controller.

A controller goes on by what it was started with; whoever looks at the run sees it, and hears what
is wrong with the file; a start takes the file as it is, or ends with one line and code 2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.common.yaml import LARGEST_RUN_FILE, read_sections
from mixloop.contract import read_status, requests
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal
from mixloop.controller.service import launch
from mixloop.controller.service.preflight import check_evals
from mixloop.controller.service.service import start_controller
from mixloop.controller.views import opening

Edit = Callable[[dict[str, Any]], Any]
COUNTED = ("checkpoints", "evaluations", "decisions", "orders", "requests", "events")


def renamed(run: dict[str, Any], *names: str) -> None:
    run["sources"] = {f"{n}-2" if n in names else n: s for n, s in run["sources"].items()}


EDITS: dict[str, Edit] = {
    "reordered": lambda run: run.update(sources=dict(reversed(run["sources"].items()))),
    "a source renamed": lambda run: renamed(run, "maths"),
    "all sources renamed": lambda run: renamed(run, *run["sources"]),
    "a source without a store": lambda run: run["sources"].update(news={"path": "no", "weight": 0}),
    "weights that are no mixture": lambda run: run["sources"]["web"].update(weight=0.9),
    "no sources": lambda run: run.pop("sources"),
    "another benchmark": lambda run: run["evals"]["benchmarks"].update(math={"data": "packages"}),
    "no such benchmark": lambda run: run["evals"].update(benchmarks={"nonesuch": {}}),
    "a larger budget": lambda run: run.update(budget=48_000),
    "a budget below what is spent": lambda run: run.update(budget=800),
    "another policy": lambda run: run.update(policy={"use": "static"}),
    "no such policy": lambda run: run.update(policy={"use": "nonesuch"}),
    "a floor above the weights": lambda run: run["guards"].update(floor=0.3),
    "a cap that leaves no mixture": lambda run: run["guards"].update(cap=0.2),
    "another seed": lambda run: run["run"].update(seed=99),
    "another id": lambda run: run["run"].update(id="q"),
    "an unknown key": lambda run: run.update(bogus=1),
    "a key file that is none": lambda run: run["trainer"].update(key_file="none"),
}
REFUSED = {
    "all sources renamed": "sources.code: no longer in the job",
    "a source renamed": "sources.maths: no longer in the job",
    "a source without a store": "no token store there",
    "weights that are no mixture": "the weights sum to 1.18",
    "no sources": "sources: missing; give it a value",
    "no such benchmark": "nonesuch",
    "another seed": "seed: 99 in the job, but this run was begun with 0",
    "another id": "a checkpoint of run 'r', not 'q'",
    "an unknown key": "bogus",
    "a key file that is none": "no such file",
}  # fmt: skip
WHILE_IT_RUNS: dict[str, Callable[[Path], Any]] = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:-40] + "\n  {"),
    "noise": lambda path: path.write_bytes(b"\xff\xfe\0\1" * 50),
    "doubled": lambda path: path.write_text(path.read_text() * 2),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
    "a device without end": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "larger than any": lambda path: os.truncate(path, LARGEST_RUN_FILE + 1),
}


def edited(path: Path, edit: Edit) -> None:
    run = yaml.safe_load(path.read_text())
    edit(run)
    path.write_text(yaml.safe_dump(run, sort_keys=False))


def counts(path: Path) -> dict[str, int]:
    journal = Journal(path, read_only=True)
    try:
        return {table: journal.value(f"SELECT COUNT(*) FROM {table}") for table in COUNTED}
    finally:
        journal.close()


def asked(*command: str) -> tuple[int, str]:
    """A command's exit code and what it says, as ``main`` has it."""
    opening._warn.cache_clear()
    result = CliRunner().invoke(app, command)
    if isinstance(result.exception, BadInput):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_an_edit_hides_no_run_and_stops_none(play: Any) -> None:
    """`status run.yaml`, and `pause` too, ended with the file's mistake and showed nothing."""
    run = play()
    run.train(4)
    sound = run.path.read_bytes()
    for name, edit in EDITS.items():
        edited(run.path, edit)
        code, said = asked("status", str(run.path))
        wrong = REFUSED.get(name, "")
        unusable = name in ("weights that are no mixture", "no sources", "an unknown key")
        assert code == 0, (name, said)
        assert "tokens" in said, (name, said)
        assert not unusable or wrong in said, (name, said)
        run.path.write_bytes(sound)
    for name, spoil in WHILE_IT_RUNS.items():
        spoil(run.path)
        code, said = asked("status", str(run.path))
        assert (code, len(said.splitlines())) == (2, 1), (name, said)
        assert "folder" in said, (name, said)
        assert asked("history", str(run.paths.dir))[0] == 0
        run.path.rmdir() if run.path.is_dir() else run.path.unlink(missing_ok=True)
        run.path.write_bytes(sound)
    edited(run.path, EDITS["an unknown key"])
    code, said = asked("pause", str(run.path), "--wait", "0")
    assert code == 0, said
    before, beat = counts(run.paths.journal), read_status(run.paths.status).value
    run.train(2)
    assert run.answer()["verb"] == "pause", "who has to stop it need not mend the file first"
    assert not requests.waiting(run.paths.requests)
    after = counts(run.paths.journal)
    assert all(after[table] >= number for table, number in before.items())
    assert beat is not None
    assert read_status(run.paths.status).value.step > beat.step


def restarted(run: Any) -> str:
    """Why no controller starts; empty where one does."""
    try:
        config = load_config(run.path)
        check_evals(run.path, config)
        launch.check_training(config)
        run.controller = start_controller(config, run.path.parent, run.said.append)
    except BadInput as error:
        return str(error)
    run.journal = run.controller.journal
    return ""


def test_a_start_goes_by_the_file_as_it_is_or_says_one_line(play: Any) -> None:
    run = play()
    run.train(4)
    sound = run.path.read_bytes()
    for name, edit in EDITS.items():
        run.controller.close()
        edited(run.path, edit)
        before = counts(run.paths.journal)
        refused = restarted(run)
        assert bool(refused) == (name in REFUSED), (name, refused)
        assert len(refused.splitlines()) < 2
        assert REFUSED.get(name, "") in refused
        if refused:
            assert counts(run.paths.journal) == before, name
            run.path.write_bytes(sound)
            continue
        run.trainer.advance()
        run.settle()
        after = counts(run.paths.journal)
        assert all(after[table] >= number for table, number in before.items()), name
        run.path.write_bytes(sound)
    assert restarted(run) == "", "as if nothing had been"
    run.settle()
    assert run.in_force().keys() == {"web", "code", "maths"}


def test_ten_thousand_sources_are_a_run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes more than the 1 MiB that was read."""
    source = "  source-{0:05d}: {{path: /data/of/the/corpus/stores/source-{0:05d}, tags: [web], "
    source += "weight: 0.0001, tokens: 1B}}\n"
    text = "sources:\n" + "".join(source.format(n) for n in range(10_000))
    assert len(text) > 2**20
    (tmp_path / "run.yaml").write_text(text)
    monkeypatch.setattr("mixloop.common.yaml.parse_yaml", lambda text: {"read": len(text)})
    assert read_sections(tmp_path / "run.yaml") == {"read": len(text)}

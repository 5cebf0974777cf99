"""The command as a person has it: other locales, folders that aren't there, one line for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixloop.cli.app import main
from mixloop.controller.config import TEMPLATE

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def mixloop(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mixloop.cli.app", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture
def run(play: Any) -> Any:
    """A run with interventions, a waiting approval, scores, and a name that isn't ASCII."""
    run = play(approval={"above": 0.05})
    run.train(5)
    run.tell("approve", "1", "--reason", "größer → besser")
    run.train(12)
    return run


def test_every_view_speaks_ascii_where_the_terminal_does(run: Any) -> None:
    for command in (["history"], ["explain", 1], ["status"], ["samples"], ["export"]):
        done = mixloop(command[0], run.path, *command[1:], **ASCII)
        assert "Traceback" not in done.stderr, command
        assert done.stdout.isascii(), command
    shown = mixloop("history", run.path, **ASCII).stdout
    assert "->" in shown
    assert "gr??er" in shown
    said = json.loads(mixloop("history", run.path, "--json", **ASCII).stdout)
    assert any("größer → besser" in entry["reason"] for entry in said)
    report = mixloop("report", run.path, **ASCII)
    assert report.returncode == 0, report.stderr
    assert "größer" in (run.paths.dir / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "command", [["--help"], ["set", "--help"], ["policies"], ["policies", "show", "rules"]]
)
def test_what_needs_no_run_speaks_ascii_too(command: list[str]) -> None:
    done = mixloop(*command, **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_files_that_cant_be_written_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("x")
    run = tmp_path / "run.yaml"
    run.write_text(TEMPLATE)
    missing = tmp_path / "missing"
    cases = [
        (["init", missing / "dir" / "run.yaml"], "there is no folder"),
        (["init", folder], "is a folder; name a file in it"),
        (["init", folder, "--force"], "is a folder; name a file in it"),
        (["init", file / "run.yaml"], "there is no folder"),
        (["simulate", "--policy", "static", "--plot", file / "a.png"], "there is no folder"),
        (["policies", "new", "mine", "--dir", missing], "there is no folder"),
        (["demo", "--dir", file, "--budget", "200k"], str(file)),
    ]
    for read in ("check", "train", "control", "run", "status", "history", "explain", "report"):
        extra = ["1"] if read == "explain" else []
        for place in (missing, missing / "run.yaml", file / "run.yaml"):
            cases.append(([read, place, *extra], str(place)))
        cases.append(([read, folder, *extra], str(folder)))
    cases += [(["backtest", missing, "--policy", "static"], "no run here")]
    cases += [(["export", folder], str(folder)), (["pause", folder], str(folder))]
    for command, message in cases:
        monkeypatch.setattr(sys, "argv", ["mixloop", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2, (command, said)
        assert message in said.err, command
        assert len(said.err.splitlines()) == 1, (command, said)

"""Back-tests: a recorded run replayed past policies, from the journal alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app, main
from mixloop.common.errors import BadInput

SCRIPT = Path(__file__).parents[2] / "support" / "kill_controller.py"
SWAY = '''
from mixloop.policies import Hold, Proposal


class Sway:
    """Moves a tenth to and fro, so that every decision asks for something."""

    def decide(self, observation):
        if not observation.in_force:
            return Hold("waiting for the last order")
        now = observation.weights["code"]
        code = now + 0.1 if now < 0.25 else now - 0.1
        return Proposal({"web": 1 - code, "code": code}, f"code {now:.2f} -> {code:.2f}")


class Grabs:
    def decide(self, observation):
        return Proposal({"web": 0.0, "code": 1.0}, "all of it")


class Breaks:
    def decide(self, observation):
        raise ValueError("no idea")
'''


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that the real controller has driven to its end, beside a trainer made of files."""
    folder = tmp_path_factory.mktemp("recorded")
    for name in ("web", "code"):
        (folder / name).mkdir()
        (folder / name / "tokens.bin").write_bytes(b"\0\0" * 10_000)
        header = {"schema": "mixloop/store/1", "tokens": 10_000, "documents": 1, "dtype": "uint16"}
        header |= {"vocab_size": 65536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
        (folder / name / "store.json").write_text(json.dumps(header))
    (folder / "sway.py").write_text(SWAY)
    data: dict[str, Any] = {
        "run": {"id": "r", "dir": "run"},
        "budget": 6_000,
        "sources": {"web": {"path": "web", "weight": 0.9}, "code": {"path": "code", "weight": 0.1}},
        "evals": {"benchmarks": {"gsm8k": {"data": "packages"}}},
        "policy": {"use": "./sway.py:Sway"},
        "guards": {"max_change": 0.2, "max_epochs": None},
        "tracking": {"enabled": False},
        "controller": {"poll": 0.01},
        "trainer": {"sequence_length": 10, "micro_batch": 8, "poll_every": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    command = [sys.executable, str(SCRIPT), str(path), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return path


def replay(run: Path, policy: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["backtest", str(run), "--policy", policy, "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_runs_own_policy_decides_as_it_did_on_what_it_saw(run_file: Path) -> None:
    report = replay(run_file, "./sway.py:Sway")
    assert len(report["decisions"]) >= 3
    assert any(decision["was"]["verdict"] == "intervene" for decision in report["decisions"])
    for decision in report["decisions"]:
        assert decision["observed"] == "same", decision["id"]
        # the last decision of a run may have come when training had ended meanwhile
        assert decision["agrees"] or decision["was"]["verdict"] == "expired", decision
    assert replay(run_file.parent / "run", "./sway.py:Sway") == report


def test_another_policy_differs_where_it_would_and_meets_the_guards(run_file: Path) -> None:
    report = replay(run_file, f"{run_file.parent}/sway.py:Grabs")
    for decision in report["decisions"]:
        now = decision["weights_before"]["code"]
        if decision["would"]["verdict"] == "intervene":
            assert decision["would"]["weights_after"]["code"] == pytest.approx(now + 0.2)
            said = {note["guard"]: note for note in decision["would"]["guards"]}
            assert "cut to 0.2" in said["trust region"]["detail"]
    assert report["summary"]["would_intervene"] >= 2
    assert report["summary"]["agree"] < report["summary"]["decisions"]
    assert report["summary"]["mean_total_variation"] > 0.05


def test_a_policy_that_raises_is_shown_to_hold(run_file: Path) -> None:
    report = replay(run_file, f"{run_file.parent}/sway.py:Breaks")
    for decision in report["decisions"]:
        assert decision["would"]["verdict"] == "hold"
        assert "no idea" in decision["would"]["reason"]


def test_the_table_says_what_and_why(run_file: Path) -> None:
    done = CliRunner().invoke(app, ["backtest", str(run_file), "--policy", "static"])
    assert done.exit_code == 0
    assert "d-000001" in done.stdout
    assert "decisions agree" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--policy", "static"], "no run here"),
        (["RUN", "--policy", "statik"], "did you mean 'static'"),
        (["RUN", "--policy", "static", "--with", "[1]"], "no mapping"),
    ],
)
def test_bad_input_is_one_line(
    run_file: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(run_file) if argument == "RUN" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["mixloop", "backtest", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_several_files_configure_is_asked_about(run_file: Path) -> None:
    other = run_file.with_name("another.yml")
    other.write_text(run_file.read_text().replace("max_change: 0.2", "max_change: 0.1"))
    folder = run_file.parent / "run"
    (folder / "unrelated.yaml").write_text("a: 1\n")
    done = CliRunner().invoke(app, ["backtest", str(folder), "--policy", "static"])
    assert isinstance(done.exception, BadInput)
    said = str(done.exception)
    assert "2 files configure this run" in said
    assert str(run_file) in said
    assert str(other) in said
    assert replay(run_file, "static")["policy"] == "static"


AGAIN = """
from mixloop.policies import Proposal


class Again:
    def decide(self, observation):
        return Proposal({"web": 0.64, "code": 0.2, "maths": 0.16}, "a fifth of code")
"""


def test_what_waited_for_a_person_then_waits_in_the_replay(play: Any, tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text(AGAIN)
    run = play(policy={"use": "./again.py:Again"}, approval={"above": 0.05})
    run.train(16)
    report = replay(run.path, "./again.py:Again")
    assert [d["was"]["verdict"] for d in report["decisions"]][:2] == ["awaiting-approval", "hold"]
    assert all(decision["agrees"] for decision in report["decisions"])

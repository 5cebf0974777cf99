"""`mixloop policies`: the list, a policy's options, a new one, and the suite from a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.policies.interface import policy_names
from mixloop.tools.policy_authoring.listing import type_in_words

INSTALLED = """
from mixloop.policies import Hold
class Fancy:
    '''Holds, from elsewhere.

    And more.
    '''
    def decide(self, observation):
        return Hold("elsewhere")
"""


def mixloop(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["policies", *map(str, arguments)])


def refusal(*arguments: object) -> str:
    found = mixloop(*arguments).exception
    assert isinstance(found, BadInput)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that brings a policy, and one whose module is broken."""
    (tmp_path / "fancy_policies.py").write_text(INSTALLED)
    info = tmp_path / "fancy_pack-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fancy-pack\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(
        "[mixloop.policies]\nfancy = fancy_policies:Fancy\nbroken = not_there:Policy\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "fancy_policies", raising=False)


@pytest.mark.usefixtures("installed")
def test_the_list_has_built_in_and_installed_policies_and_survives_a_broken_one() -> None:
    found = {one["name"]: one for one in json.loads(mixloop("--json").stdout)}
    assert list(found) == policy_names()
    assert found["static"]["origin"] == "built in"
    assert found["fancy"] == {
        "name": "fancy",
        "origin": "fancy-pack 2.1, fancy_policies:Fancy",
        "about": "Holds, from elsewhere.",
    }
    assert "can't be used" in found["broken"]["about"]
    table = mixloop().stdout
    assert all(name in table for name in found)


def test_every_policy_that_ships_says_what_it_does() -> None:
    for one in json.loads(mixloop("--json").stdout):
        assert one["about"] not in ("", "(no docstring)"), one["name"]
        assert one["about"].endswith("."), one["name"]


def test_the_options_are_shown_with_types_and_defaults() -> None:
    schema = json.loads(mixloop("show", "rules", "--json").stdout)
    assert "interventions" in schema["properties"]
    text = mixloop("show", "rules").stdout
    for name in (*schema["properties"], *schema["$defs"], "cooldown", "at least 1", "required"):
        assert name in text
    assert "(none)" in mixloop("show", "proportional").stdout
    assert "did you mean 'static'?" in refusal("show", "statik")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number above 0, at most 1"),
        ({"type": "integer"}, "integer"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"type": "array", "items": {"$ref": "#/$defs/Move"}}, "list of Move"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "mapping to number"),
        ({"enum": ["up", "down"], "type": "string"}, '"up" | "down"'),
        ({"const": 3}, "3"),
        ({}, "any"),
    ],
)
def test_types_in_words(spec: dict[str, object], words: str) -> None:
    assert type_in_words(spec) == words


def test_a_new_policy_conforms_and_its_own_test_passes(tmp_path: Path) -> None:
    made = mixloop("new", "my_returns", "--dir", tmp_path)
    assert made.exit_code == 0
    ref = f"{tmp_path}/my_returns.py:MyReturns"
    assert ref in made.stdout
    assert len((tmp_path / "my_returns.py").read_text().splitlines()) < 70
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    report = mixloop("test", ref, "--with", '{"step": 0.2}', "--json")
    assert report.exit_code == 0
    checks = json.loads(report.stdout)["checks"]
    assert all(check["passed"] for check in checks)
    assert checks[-1]["name"] == "process"
    before = (tmp_path / "my_returns.py").read_text()
    assert "is there already" in refusal("new", "my_returns", "--dir", tmp_path)
    assert (tmp_path / "my_returns.py").read_text() == before


def test_a_new_policy_writes_nothing_where_its_test_would_not_fit(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("mine\n")
    assert "test_mine.py is there already" in refusal("new", "mine", "--dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]


@pytest.mark.parametrize("name", ["My", "1st", "a-b", "class", "../up", ""])
def test_a_name_that_is_no_module(name: str, tmp_path: Path) -> None:
    assert "is no module name" in refusal("new", name, "--dir", tmp_path)


def test_a_policy_that_depends_on_the_order_of_a_set_fails_in_another_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "hashed.py").write_text(
        "from mixloop.policies import Hold\n"
        "class Hashed:\n"
        "    def decide(self, observation):\n"
        "        names = {f'{n}{i}' for n in observation.sources for i in range(9)}\n"
        "        return Hold(' '.join(names))\n"
    )
    found = mixloop("test", f"{tmp_path}/hashed.py:Hashed")
    assert found.exit_code == 1
    row = next(line for line in found.stdout.splitlines() if "another process" in line)
    assert "FAILED" in row
    assert "reason differ there" in row
    assert "1 of 37 checks failed" in found.stdout


def test_the_names_of_a_run_can_be_used(tmp_path: Path) -> None:
    text = """
run: {id: small, dir: small}
budget: 1M
sources:
  prose: {path: data/prose, tags: [web]}
  sums: {path: data/sums, tags: [maths]}
evals: {every: 100k, benchmarks: {gsm8k: {}}}
policy: {use: static, with: {weights: {prose: 0.5, sums: 0.5}}}
"""
    (tmp_path / "run.yaml").write_text(text)
    found = json.loads(mixloop("test", "--config", tmp_path / "run.yaml", "--json").stdout)
    assert found["policy"] == "static"
    assert found["passed"]
    wrong = mixloop("test", "static", "--with", "{weights: {maths: 1}}", "--json",
                    "--config", tmp_path / "run.yaml")  # fmt: skip
    assert wrong.exit_code == 1
    first = json.loads(wrong.stdout)["checks"][0]
    assert "no source is called 'maths'" in first["detail"]


def test_what_cannot_be_tested() -> None:
    assert "give a policy" in refusal("test")
    assert "is no mapping" in refusal("test", "static", "--with", "[1")
    assert "did you mean 'weights'" in refusal("test", "static", "--with", "{weight: 1}")

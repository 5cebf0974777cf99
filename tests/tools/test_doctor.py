"""What `mixloop doctor` finds, and what it makes of something missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.evals.sandbox import Sandbox


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_report_says_which_sandbox_runs_and_what_it_leaves_open() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    rows = {row["what"]: row for row in report["rows"]}
    box = Sandbox("auto")
    usable = box.unusable() is None
    box.close()
    assert rows["sandbox"]["status"] == ("ok" if usable else "missing")
    assert rows["sandbox"]["detail"].startswith(box.kind)
    assert any("nonce" in line for line in report["sandbox_does_not_cover"])
    assert not usable or rows["imports"]["status"] == "ok"
    assert rows["hub"]["status"] == "warn"
    assert rows["items: humaneval"]["detail"].startswith("164 ")
    assert result.exit_code == (0 if report["ok"] else 1)
    assert all(row["mend"] for row in report["rows"] if row["status"] == "missing")


def test_what_programs_can_not_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "not_imported", lambda self: ["csv", "email"])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(result.stdout)["rows"]}
    if rows["sandbox"]["status"] == "missing":
        pytest.skip("this machine offers no sandbox")
    assert rows["imports"]["status"] == "missing"
    assert "can't import csv, email, which this Python has" in rows["imports"]["detail"]


def test_a_missing_package_is_named_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # another mixloop, found first, that wants what nobody has
    about = tmp_path / "mixloop-9.dist-info"
    about.mkdir()
    wanted = ("no-such-package-anywhere>=9", "numpy>=99", "pyyaml", "absent-too; extra == 'dev'")
    lines = ["Metadata-Version: 2.1", "Name: mixloop", "Version: 9"]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {w}" for w in wanted)]))
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    said = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "missing" in said["no-such-package-anywhere"]
    assert "pip install 'no-such-package-anywhere>=9'" in said["no-such-package-anywhere"]
    assert "warn" in said["numpy"]
    assert "absent-too" not in said

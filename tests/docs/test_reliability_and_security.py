"""docs/reliability.md and docs/security.md: two pages each, and what they call a proof is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
RELIABILITY, SECURITY = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("reliability", "security")
)
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in TESTS.glob("support/*.py")}
SCRIPTS["tests.simulation"] = (TESTS / "simulation" / "__main__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [RELIABILITY, SECURITY], ids=["reliability", "security"])
def test_it_has_two_pages_at_most(text: str) -> None:
    assert len(text.replace("|", " ").split()) <= 1200


def test_every_promise_names_tests_that_are_there() -> None:
    table = SECURITY.split("## Promises")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!promise|-)(.*) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 20
    for promise, proof in rows:
        named = re.findall(r"`([\w/]*test_\w+\.py)`", proof)
        assert named, promise
        for name in named:
            assert len(list(TESTS.rglob(name))) == 1, f"{promise}: {name}"


def test_the_commands_of_its_rows_are_there() -> None:
    rows = re.findall(r"^\| (?!what befalls|-)(.*) \| (`.*) \| .* \|$", RELIABILITY, re.MULTILINE)
    assert len(rows) > 15
    for befalls, command in rows:
        soak = re.match(r"`pytest -m soak (\S+?)(?: -k (\w+))?`$", command)
        if soak is not None:
            assert soaks(ROOT / soak[1], soak[2] or ""), befalls
        else:
            script = re.match(r"`(?:python -m )?([\w.]+)", command)
            assert script is not None, befalls
            for option in re.findall(r"--[\w-]+", command):
                assert f'"{option}"' in SCRIPTS[script[1]], f"{befalls}: {option}"


def soaks(place: Path, word: str) -> list[str]:
    """Slow proofs at or below ``place``, or tests slow in part, with ``word`` in their names."""
    found = []
    for path in [place] if place.is_file() else place.rglob("test_*.py"):
        before = re.split(r"\n\n\n", path.read_text(encoding="utf-8"))
        marked = [block for block in before if "mark.soak" in block.split("\ndef ")[0]]
        found += re.findall(rf"^def (test_\w*{word}\w*)", "\n".join(marked), re.MULTILINE)
    return found

"""The real controller under a simulated world, and deliberate bugs that it must catch.

``python -m tests.simulation --seed N --trace`` shows a seed event by event, ``--faults`` and
``--invariants`` what goes wrong and what must hold; docs/reliability.md has the figures.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixloop.common import files

HERE = Path(__file__).parents[1]
RELIABILITY = (HERE.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
SEEDS = range(16)
MUTATIONS = [
    "no-file-fsync",
    "no-folder-fsync",
    "written-in-place",
    "publish-first",
    "generation-reused",
    "no-fence-check",
    "fence-not-raised",
    "not-republished",
    "trainer-ignores-fence",
    "no-guards",
    "goes-elsewhere",
    "no-recheck",
    "old-approval",
    "forgets-waiting",
    "decides-twice",
    "experiment-untold",
    "experiment-unrecorded",
    "experiment-over-budget",
    "experiment-outlives",
    "receipt-early",
    "receipt-first",
    "acknowledges-last",
    "half-transactions",
    "forgets-resume",
    "takes-twice",
    "request-gone-first",
    "refuses-unreadable",
    "no-keys",
    "no-lookup",
    "drawn-ids",
    "pages-count",
    "marks-failures",
    "marks-early",
    "entry-apart",
    "seal-left",
]
QUICK = ("no-folder-fsync", "publish-first", "no-fence-check", "generation-reused")
SOAKED = [pytest.param(n, marks=() if n in QUICK else pytest.mark.soak) for n in MUTATIONS]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The simulation's modules by name, the product patched while a test runs."""
    monkeypatch.syspath_prepend(HERE)
    with importlib.import_module("simulation.patches").installed():
        yield lambda name: importlib.import_module(f"simulation.{name}")


def test_no_fault_breaks_an_invariant(simulated: Any, tmp_path: Path) -> None:
    simulate = simulated("runner").simulate
    faults: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    for seed in SEEDS:
        result = simulate(seed, 200)
        assert result.violation is None, "\n".join(
            [f"seed {seed}", *result.events, result.violation]
        )
        assert result.cycles >= 200
        faults += result.faults
        facts += result.facts
    assert sum(count > 0 for count in faults.values()) >= 40
    assert facts["applied"] > 3 * len(SEEDS), "little happens, so little is proven"
    assert facts["fences"] > 5 * len(SEEDS)


def test_a_seed_is_one_run_bit_for_bit(simulated: Any, tmp_path: Path) -> None:
    simulate = simulated("runner").simulate
    once, again = (simulate(3, 200, tmp_path / name) for name in ("a", "another place"))
    assert once.events == again.events
    assert once.digest == again.digest
    assert simulate(4, 200).digest != once.digest


def test_a_thread_that_another_test_has_left_changes_nothing(
    simulated: Any, tmp_path: Path
) -> None:
    simulate = simulated("runner").simulate
    once = simulate(3, 60, tmp_path / "a")
    begun = threading.Event()
    passed: list[int] = []

    def stray() -> None:
        begun.set()
        with contextlib.suppress(OSError):  # the simulation is over
            files.write_atomic(tmp_path / "stray", b"beat")
            passed.append(1)

    thread = threading.Thread(target=stray, daemon=True)

    def say(line: str) -> None:
        if not begun.is_set():  # the simulation runs
            thread.start()
            begun.wait()

    again = simulate(3, 60, tmp_path / "b", say)
    assert thread.is_alive()
    simulated("here").leave()
    thread.join(10)
    assert not passed
    assert again.digest == once.digest


UNSEEN = ("acknowledges-last",)


@pytest.mark.parametrize("name", SOAKED)
def test_a_deliberate_bug_is_caught(simulated: Any, name: str) -> None:
    mutations = simulated("mutations")
    bug = mutations.BY_NAME[name]
    result = mutations.caught(bug)
    if result is None and name in UNSEEN:
        pytest.xfail("seen on an earlier version; a run that shows it is rare on this one")
    assert result is not None, "none of a hundred seeds sees it"
    assert result.invariant in bug.seen_by.split(), result.violation
    assert result.events[-1].endswith(f"VIOLATION {result.violation}"), "the events lead up to it"


def test_every_deliberate_bug_is_tried(simulated: Any) -> None:
    bugs = simulated("mutations").BY_NAME
    assert list(bugs) == MUTATIONS
    assert f"| {len(bugs)} deliberate bugs: " in RELIABILITY
    names = simulated("invariants").NAMES
    assert {name for bug in bugs.values() for name in bug.seen_by.split()} <= set(names)


@pytest.mark.parametrize(("module", "table"), [("faults", "KINDS"), ("invariants", "NAMES")])
def test_what_is_described_is_there(
    simulated: Any, module: str, table: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is drawn or checked without a description (asserted where it happens), nor told of
    without being drawn or checked."""
    described = getattr(simulated(module), table)
    what = "kinds of fault" if module == "faults" else module
    assert f" {len(described)} {what}" in RELIABILITY
    files_of_it = set((HERE / "simulation").glob("*.py")) - {HERE / "simulation" / "mutations.py"}
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(files_of_it))
    assert [name for name in described if text.count(f'"{name}"') < 2] == []
    monkeypatch.setattr(sys, "argv", ["simulation", f"--{module}"])
    assert simulated("__main__").main() == 0
    rows = re.findall(r"^\| `(.*)` \| (.*) \|$", capsys.readouterr().out, re.MULTILINE)
    assert dict(rows) == described
    assert all(len(text) > 10 for text in described.values())


@pytest.mark.soak
def test_every_fault_happens_and_none_breaks_anything() -> None:
    """The command of the long run, on its first seeds; `make soak` runs 10,000."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "500", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    summary = json.loads(done.stdout)
    assert summary["violations"] == []
    assert min(summary["faults"].values()) > 0

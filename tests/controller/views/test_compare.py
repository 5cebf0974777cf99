"""`mixloop compare`: two scorecards, from files or a run's journal, through the command itself."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mixloop.cli.app import main
from mixloop.controller.journal import Journal, records
from mixloop.evals import BenchmarkScore, Scorecard
from mixloop.evals.scoring.metrics import cluster_of, mean_metrics, ratio_metric

Items = dict[str, dict[str, float]]


def mmlu_items(seed: int, gain: float = 0.0) -> Items:
    """12 subjects of 5 items; the seed moves a subject's items together."""
    shared = np.random.default_rng(1).normal(3, 0.5, 60)
    rng = np.random.default_rng(seed)
    bits = shared - gain + np.repeat(rng.normal(0, 0.1, 12), 5) + rng.normal(0, 0.05, 60)
    return {
        f"subject{k // 5}/{k}": {"bits_per_byte": float(b), "bytes": 10.0 + k}
        for k, b in enumerate(bits)
    }


def gsm8k_items(right: str) -> Items:
    return {f"gsm8k/{k}": {"exact_match": float(c == "+")} for k, c in enumerate(right)}


def score(name: str, items: Items, **changes: Any) -> BenchmarkScore:
    cluster, n = partial(cluster_of, name), len(items)
    gold = {item: one for item, one in items.items() if "bytes" in one}
    metrics = {"bits_per_byte": ratio_metric(gold, n, cluster)} if gold else {}
    answers = {
        item: {"exact_match": one["exact_match"]}
        for item, one in items.items()
        if "exact_match" in one
    }
    metrics |= mean_metrics(answers, n, cluster)
    return BenchmarkScore(status="ok", metrics=metrics, items=items, **changes)


def card(step: int, digest: str = "sha256:one", **scores: BenchmarkScore) -> Scorecard:
    return Scorecard(
        checkpoint=f"runs/a/step-{step}",
        step=step,
        tokens=step * 1000,
        benchmarks=scores,
        seconds=1.0,
        settings_digest=digest,
    )


OLD = card(10, mmlu=score("mmlu", mmlu_items(2)), gsm8k=score("gsm8k", gsm8k_items("++--+---")))
NEW = card(
    20, mmlu=score("mmlu", mmlu_items(3, 0.2)), gsm8k=score("gsm8k", gsm8k_items("+-+++++-"))
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `mixloop compare` in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixloop", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path: Path) -> Any:
    def write(a: Scorecard, b: Scorecard) -> tuple[Path, Path]:
        paths = tmp_path / "a.json", tmp_path / "b.json"
        a.write(paths[0])
        b.write(paths[1])
        return paths

    return write


def rows_of(out: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["benchmark"], row["metric"]): row for row in json.loads(out)["rows"]}


def test_each_metric_is_compared_over_its_items(command: Any, files: Any) -> None:
    code, out, err = command(*files(OLD, NEW), "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["a"]["step"], report["b"]["tokens"], report["notes"]) == (10, 20_000, [])
    rows = rows_of(out)
    bits, match = rows["mmlu", "bits_per_byte"], rows["gsm8k", "exact_match"]
    sides = [card.benchmarks["mmlu"] for card in (OLD, NEW)]
    for side, key in zip(sides, "ab", strict=True):
        assert bits[key] == pytest.approx(side.metrics["bits_per_byte"].value)
    d, w = np.array(
        [
            (one["bits_per_byte"] - sides[1].items[item]["bits_per_byte"], one["bytes"])
            for item, one in sides[0].items.items()
        ]
    ).T
    sums = (w * (d - bits["gain"])).reshape(12, 5).sum(1)
    assert bits["gain"] == pytest.approx(bits["a"] - bits["b"])
    assert bits["stderr"] == pytest.approx(math.sqrt(12 / 11 * np.square(sums).sum()) / w.sum())
    assert (bits["df"], bits["items"], bits["mcnemar"]) == (11, 60, None)
    p = stats.t.sf(bits["gain"] / bits["stderr"], 11)
    assert stats.norm.sf(bits["z"]) == pytest.approx(p)
    assert bits["low"] < bits["gain"] < bits["high"]
    assert (match["a"], match["b"], match["gain"]) == (0.375, 0.75, 0.375)
    assert (match["df"], match["items"]) == (7, 8)
    assert match["mcnemar"] == pytest.approx(stats.binomtest(4, 5).pvalue)


def test_a_person_sees_a_table_and_the_notes(command: Any, files: Any) -> None:
    gone = BenchmarkScore(status="missing", reason="no usable sandbox")
    dropped = score("gsm8k", gsm8k_items("+-+++"), shots=3)
    new = NEW.model_copy(update={"benchmarks": {"mmlu": gone, "gsm8k": dropped, "math": gone}})
    code, out, _ = command(*files(OLD, new))
    assert code == 0
    lines = out.splitlines()
    assert "A = runs/a/step-10 at step 10   B = runs/a/step-20 at step 20" in lines[0]
    row = next(line for line in lines if line.lstrip().startswith("gsm8k"))
    assert row.split()[:5] == ["gsm8k", "exact_match", "0.6000", "0.8000", "+0.2000"]
    assert lines[-5:] == [
        "mmlu: missing in B: no usable sandbox",
        "gsm8k: shots 0 in A, 3 in B",
        "gsm8k exact_match: compared over 5 shared items of 8 in A and 5 in B",
        "math: not asked in A",
        "math: missing in B: no usable sandbox",
    ]


def test_a_metric_that_one_side_lacks_is_said(command: Any, files: Any) -> None:
    both = gsm8k_items("+-")
    for one in both.values():
        one |= {"bits_per_byte": 1.0, "bytes": 4.0}
    old = card(10, gsm8k=score("gsm8k", both, reason="exact_match: the sandbox died"))
    new = card(20, gsm8k=score("gsm8k", gsm8k_items("++")))
    _, out, _ = command(*files(old, new), "--json")
    assert json.loads(out)["notes"] == [
        "gsm8k: in A: exact_match: the sandbox died",
        "gsm8k bits_per_byte: not measured in B",
    ]
    assert list(rows_of(out)) == [("gsm8k", "exact_match")]


def test_what_was_asked_differently_is_refused_unless_forced(command: Any, files: Any) -> None:
    paths = files(OLD, NEW.model_copy(update={"settings_digest": "sha256:two"}))
    code, out, err = command(*paths)
    assert (code, out) == (2, "")
    for words in ("sha256:one", "sha256:two", "asked differently", "--force"):
        assert words in err
    assert err.count("\n") == 1
    code, forced, _ = command(*paths, "--force", "--json")
    assert code == 0
    assert json.loads(forced)["notes"] == [
        "asked differently: A has settings sha256:one, B sha256:two"
    ]
    _, plain, _ = command(*files(OLD, NEW), "--json")
    assert json.loads(forced)["rows"] == json.loads(plain)["rows"]


def test_one_shared_item_is_shown_without_an_error(command: Any, files: Any) -> None:
    cards = [card(k, gsm8k=score("gsm8k", gsm8k_items(right))) for k, right in enumerate("-+")]
    paths = files(*cards)
    _, out, _ = command(*paths, "--json")
    row = rows_of(out)["gsm8k", "exact_match"]
    assert (row["gain"], row["stderr"], row["low"], row["z"], row["df"]) == (1.0, None, None, 0, 0)
    assert command(*paths)[0] == 0


def test_no_change_at_all_is_no_certainty(command: Any, files: Any) -> None:
    _, out, _ = command(*files(OLD, OLD), "--json")
    row = rows_of(out)["gsm8k", "exact_match"]
    assert (row["gain"], row["stderr"], row["z"], row["mcnemar"]) == (0.0, 0.0, 0.0, 1.0)
    assert row["low"] is row["high"] is None


def test_nothing_shared_fails_and_says_why(command: Any, files: Any) -> None:
    other = card(20, gsm8k=score("gsm8k", {"gsm8k/x": {"exact_match": 1.0}}))
    old = card(10, gsm8k=score("gsm8k", gsm8k_items("+-")))
    code, out, err = command(*files(old, other))
    assert code == 1
    assert "gsm8k exact_match: no item is scored on both sides" in out
    assert err == "error: nothing can be compared\n"


def write_run(run: Path, *cards: Scorecard) -> Path:
    journal = Journal(run / "journal.db", create=True)
    journal.claim("r")
    force = SimpleNamespace(generation=0, weights={"web": 1.0})
    for one in cards:
        step = one.step
        assert step is not None
        manifest = {"step": step, "tokens": one.tokens, "sample": step, "phase": "stable"}
        manifest["incarnation"] = 1
        records.checkpoint(
            journal, SimpleNamespace(**manifest, in_force=force, sources={}), one.checkpoint, {}
        )
        records.scoring_started(journal, step)
        records.scored(journal, step, json.loads(one.to_json()))
    journal.close()
    return run


def test_two_checkpoints_of_a_run(command: Any, files: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", OLD, NEW)
    found = command(run, "--steps", "10,20", "--json")
    assert found == command(*files(OLD, NEW), "--json")
    for steps, words in (("10,30", "no scorecard at step 30; scored steps: 10, 20"),
                         ("10", "--steps: '10' is not two steps")):  # fmt: skip
        code, _, err = command(run, "--steps", steps)
        assert code == 2
        assert words in err


def test_the_trajectory_of_the_run_counts_beside_the_items(
    command: Any, files: Any, tmp_path: Path
) -> None:
    jumps = (0.0, 0.2, -0.2, 0.2, -0.2, 0.2)
    cards = [
        card(10 * (k + 1), mmlu=score("mmlu", mmlu_items(2 + k, gain)))
        for k, gain in enumerate(jumps)
    ]
    run = write_run(tmp_path / "run", *cards)
    _, out, _ = command(run, "--steps", "50,60", "--json")
    both = rows_of(out)["mmlu", "bits_per_byte"]
    _, out, _ = command(*files(*cards[-2:]), "--json")
    alone = rows_of(out)["mmlu", "bits_per_byte"]
    assert both["gain"] == alone["gain"]
    assert both["stderr_items"] == pytest.approx(alone["stderr"])
    assert alone["stderr_trajectory"] == 0
    assert both["stderr_trajectory"] > 0.1
    assert both["stderr"] == pytest.approx(math.hypot(alone["stderr"], both["stderr_trajectory"]))
    assert abs(both["z"]) < abs(alone["z"])
    _, shown, _ = command(run, "--steps", "50,60")
    assert "± trajectory" in shown
    assert f"{both['stderr_trajectory']:.4f}" in shown
    assert "jitters" not in shown
    assert "jitters" in command(*files(*cards[-2:]))[1]


def test_bad_input_is_one_line(command: Any, files: Any, tmp_path: Path) -> None:
    good, _ = files(OLD, NEW)
    (tmp_path / "text.json").write_text("hello")
    for arguments, words in (
        ((good, tmp_path / "nowhere.json"), "nowhere.json: no scorecard here"),
        ((tmp_path, good), "no scorecard here (a folder)"),
        ((good, tmp_path / "text.json"), "text.json: not a scorecard"),
        ((good,), "give two scorecards"),
        ((good, good, "--steps", "1,2"), "give two scorecards"),
    ):
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err

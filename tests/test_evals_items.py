"""Where items come from, which are chosen, and the estimates made of them."""

from __future__ import annotations

import http.server
import json
import math
import random
import re
import statistics
import threading
import time
from pathlib import Path

import pytest

from mixloop.evals import estimates, hub, items
from mixloop.evals.scorecard import BenchmarkScore, Scorecard, training_state
from mixloop.evals.settings import EvalSettings


@pytest.mark.parametrize(("benchmark", "least"), [("mmlu", 250), ("gsm8k", 8), ("humaneval", 164)])
def test_packages_carry_real_items(benchmark: str, least: int) -> None:
    found = items.load_items(benchmark, "packages")
    assert len(found.rows) >= least
    assert len({row["id"] for row in found.rows}) == len(found.rows)
    assert all(row["gold"].strip() for row in found.rows)
    assert found.describe(7).startswith(f"packages: 7 of {len(found.rows)} items (")


def test_mmlu_items_from_packages_are_whole() -> None:
    rows = items.load_items("mmlu", "packages").rows
    assert len({row["subject"] for row in rows}) == 57
    for row in rows:
        assert len(row["choices"]) == 4
        assert row["gold"] == row["choices"][row["answer"]]
        assert "(A)" not in row["question"]


def test_gsm8k_answers_from_packages_are_in_its_own_form() -> None:
    for row in items.load_items("gsm8k", "packages").rows:
        worked, number = row["answer"].split("\n#### ")
        assert re.fullmatch(r"-?[0-9.,]*[0-9]", number)
        assert number in worked
        assert "The answer is" not in worked
        assert row["gold"] == row["answer"]


def test_stock_shots_among_the_items_are_noticed(tmp_path: Path) -> None:
    assert items.load_items("gsm8k", "packages").overlaps
    assert items.load_items("mmlu", "packages").overlaps
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "Two.\n#### 2"}))
    assert not items.load_items("gsm8k", (path,)).overlaps


def test_an_item_has_one_id_wherever_it_comes_from(tmp_path: Path) -> None:
    packaged = items.load_items("mmlu", "packages").rows
    shuffled = [{**row, "more": 1} for row in packaged]
    random.Random(5).shuffle(shuffled)
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in shuffled))
    filed = items.load_items("mmlu", (tmp_path,)).rows
    assert {row["id"] for row in filed} == {row["id"] for row in packaged}
    assert items.choose(filed, 40, 3) == items.choose(packaged, 40, 3)


def test_subsets_are_seeded_and_nested() -> None:
    rows = items.load_items("humaneval", "packages").rows
    small, large = items.choose(rows, 20, 0), items.choose(rows, 60, 0)
    assert small == large[:20]
    assert small == items.choose(rows[::-1], 20, 0)
    assert small != items.choose(rows, 20, 1)
    assert len(items.choose(rows, None, 0)) == len(rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be read as JSON lines: row 1: "),
        ("\n[1]", "row 2 is [1], not an object with fields"),
        ('{"question": "q"}', "row 1 has no field 'answer'; a row's fields are question, answer"),
        ('{"question": "q", "answer": " "}', "row 1 field 'answer' is empty; give the gold answer"),
        ('{"question": "q", "answer": 18}', "row 1 field 'answer' is 18; give a text"),
        ("", "no items in"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(items.ItemsError, match=r"bad\.jsonl") as caught:
        items.load_items("gsm8k", (path,))
    assert said in str(caught.value)


def test_the_hub_is_not_asked_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # an address that would answer, were it asked
    with _answering(monkeypatch):
        assert not hub.hub_reachable()
        assert items.load_items("gsm8k", "auto").kind == "packages"


def test_the_hub_is_found_when_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    with _answering(monkeypatch):
        assert hub.hub_reachable()


def test_a_dead_hub_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1:9")  # reserved: nobody is there
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.5)
    began = time.monotonic()
    assert items.load_items("humaneval", "auto").kind == "packages"
    assert time.monotonic() - began < 3


class _answering:  # noqa: N801  reads as a word at its `with`
    """A hub that answers, on this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{self._server.server_port}")
        monkeypatch.setenv("no_proxy", "*")

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_mean_is_the_textbook_one() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    value, stderr = estimates.mean(values)
    assert value == pytest.approx(statistics.fmean(values))
    assert stderr == pytest.approx(statistics.stdev(values) / math.sqrt(7))
    assert estimates.mean([0.5]) == (0.5, None)


def test_ratio_standard_error_covers_the_truth() -> None:
    random_ = random.Random(1)
    covered = 0
    for _ in range(400):
        weights = [random_.uniform(20, 400) for _ in range(40)]
        totals = [w * 1.3 + random_.gauss(0, 0.2 * w) for w in weights]
        value, stderr = estimates.ratio(totals, weights)
        assert stderr is not None
        covered += abs(value - 1.3) < 2.02 * stderr
    assert 0.90 < covered / 400 < 0.99


def test_ratio_of_equal_weights_is_the_mean() -> None:
    totals = [3.0, 4.0, 8.0, 1.0]
    value, stderr = estimates.ratio(totals, [2.0] * 4)
    plain = estimates.mean([t / 2 for t in totals])
    assert (value, stderr) == (pytest.approx(plain[0]), pytest.approx(plain[1]))
    with pytest.raises(ValueError, match="no weight"):
        estimates.ratio([], [])


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'mm lu' can't be a benchmark: choose from mmlu"):
        EvalSettings.model_validate({"benchmarks": {"mm lu": {}}})
    with pytest.raises(ValueError, match="items"):
        EvalSettings.model_validate({"benchmarks": {"mmlu": {"items": 0}}})
    assert list(EvalSettings().asked) == ["mmlu", "gsm8k", "math", "humaneval"]


def test_settings_survive_their_json_and_keep_their_digest() -> None:
    settings = EvalSettings.model_validate(
        {"benchmarks": {"math": {"data": "some/folder"}, "mmlu": {"items": 9, "data": ["a", "b"]}}}
    )
    again = EvalSettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert again.digest() == settings.digest()
    assert settings.benchmarks["math"].data == (Path("some/folder"),)
    # what a run costs is not what it measures
    assert settings.model_copy(update={"threads": 7}).digest() == settings.digest()
    assert settings.model_copy(update={"seed": 7}).digest() != settings.digest()


def test_pinned_settings_keep_what_auto_found() -> None:
    settings = EvalSettings.model_validate({"benchmarks": {"math": {}, "mmlu": {"data": "hub"}}})
    pinned = settings.pinned({"math": "packages", "mmlu": "packages", "gsm8k": "hub"})
    assert pinned.asked["math"].data == "packages"
    assert pinned.asked["mmlu"].data == "hub"
    assert settings.asked["math"].data == "auto"
    assert pinned.digest() == settings.digest()
    watched = EvalSettings.model_validate({"benchmarks": {"math": {}}, "watch": ["gsm8k"]})
    assert watched.pinned({"gsm8k": "packages"}).asked["gsm8k"].data == "packages"


def test_a_scorecard_survives_its_file(tmp_path: Path) -> None:
    card = Scorecard(
        schema="mixloop/scorecard/1",
        checkpoint="c",
        benchmarks={"math": BenchmarkScore(status="missing", reason="why")},
        seconds=1.0,
        settings_digest="d",
    )
    card.write(tmp_path / "deep" / "card.json")
    assert Scorecard.read(tmp_path / "deep" / "card.json") == card
    assert json.loads(card.to_json())["schema"] == "mixloop/scorecard/1"
    (tmp_path / "torn.json").write_text(card.to_json()[:50])
    with pytest.raises(ValueError, match=r"torn\.json: not a scorecard"):
        Scorecard.read(tmp_path / "torn.json")


def test_step_and_tokens_come_from_the_manifest(tmp_path: Path) -> None:
    assert training_state(tmp_path) == (None, None)
    (tmp_path / "manifest.json").write_text('{"step": 40, "tokens": 81920}')
    assert training_state(tmp_path) == (40, 81920)
    (tmp_path / "manifest.json").write_text("[1]")
    assert training_state(tmp_path) == (None, None)

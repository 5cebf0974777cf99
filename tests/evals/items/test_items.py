"""Where items come from, which are chosen, and the estimates made of them."""

from __future__ import annotations

import gzip
import http.server
import json
import math
import os
import random
import re
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mixloop.common import estimates
from mixloop.evals import BenchmarkScore, EvalSettings, Scorecard, training_state
from mixloop.evals.benchmarks import load
from mixloop.evals.items import ItemsError, hub, item_set


@pytest.mark.parametrize(("benchmark", "least"), [("mmlu", 250), ("gsm8k", 8), ("humaneval", 164)])
def test_packages_carry_real_items(benchmark: str, least: int) -> None:
    items = load.load_items(benchmark, "packages")
    assert len(items.rows) >= least
    assert len({row["id"] for row in items.rows}) == len(items.rows)
    assert all(row["gold"].strip() for row in items.rows)
    assert items.describe(7).startswith(f"packages: 7 of {len(items.rows)} items (")


def test_mmlu_items_from_packages_are_whole() -> None:
    rows = load.load_items("mmlu", "packages").rows
    assert len({row["subject"] for row in rows}) == 57
    for row in rows:
        assert len(row["choices"]) == 4
        assert row["gold"] == row["choices"][row["answer"]]
        assert "(A)" not in row["question"]


def test_gsm8k_answers_from_packages_are_in_its_own_form() -> None:
    for row in load.load_items("gsm8k", "packages").rows:
        worked, number = row["answer"].split("\n#### ")
        assert re.fullmatch(r"-?[0-9.,]*[0-9]", number)
        assert number in worked
        assert "The answer is" not in worked
        assert row["gold"] == row["answer"]


def test_stock_shots_among_the_items_are_noticed(tmp_path: Path) -> None:
    assert load.load_items("gsm8k", "packages").overlaps
    assert load.load_items("mmlu", "packages").overlaps
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "Two.\n#### 2"}))
    assert not load.load_items("gsm8k", (path,)).overlaps


def test_an_item_has_one_id_wherever_it_comes_from(tmp_path: Path) -> None:
    packaged = load.load_items("mmlu", "packages").rows
    shuffled = [{**row, "more": 1} for row in packaged]
    random.Random(5).shuffle(shuffled)
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row) for row in shuffled))
    filed = load.load_items("mmlu", (tmp_path,)).rows
    assert {row["id"] for row in filed} == {row["id"] for row in packaged}
    assert item_set.choose(filed, 40, 3) == item_set.choose(packaged, 40, 3)


def test_subsets_are_seeded_and_nested() -> None:
    rows = load.load_items("humaneval", "packages").rows
    small, large = item_set.choose(rows, 20, 0), item_set.choose(rows, 60, 0)
    assert small == large[:20]
    assert small == item_set.choose(rows[::-1], 20, 0)
    assert small != item_set.choose(rows, 20, 1)
    assert len(item_set.choose(rows, None, 0)) == len(rows)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be read as JSON lines: row 1: "),
        ("\n[1]", "row 2 is [1], not an object with fields"),
        ('{"question": "q"}', "row 1 has no field 'answer'; a row's fields are question, answer"),
        ('{"question": "q", "answer": " "}', "row 1 field 'answer' is empty; give the gold answer"),
        ('{"question": "q", "answer": 18}', "row 1 field 'answer' is 18; give a text"),
        ("", "no items in"),
        ("[" * 10**5, "its values are nested too deeply"),
        (
            '{"question": "' + "x" * 2**22 + '", "answer": "1"}',
            "'question' is too long: an item has",
        ),
        (
            '{"question": "a\\ud800", "answer": "1"}',
            "'question' holds half a character, 'a\\ud800'",
        ),
        ('{"question": "' + "x" * 2**24 + '", "answer": "1"}', "more than 16,777,216 bytes in a l"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ItemsError, match=r"bad\.jsonl") as caught:
        load.load_items("gsm8k", (path,))
    assert said in str(caught.value)


PROGRAM = {
    "task_id": "t/1",
    "prompt": "def f():\n",
    "canonical_solution": "    return 1\n",
    "test": "def check(f):\n    assert f() == 1\n",
    "entry_point": "f",
}
MMLU = {"question": "q", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2}


@pytest.mark.parametrize(
    ("benchmark", "row", "said"),
    [
        ("mmlu", {**MMLU, "answer": 4}, "row 2 field 'answer' is 4; give 0 to 3, or A to D"),
        ("mmlu", {**MMLU, "answer": "E"}, "row 2 field 'answer' is 'E'"),
        ("mmlu", {**MMLU, "answer": True}, "row 2 field 'answer' is True"),
        ("mmlu", {**MMLU, "choices": ["a", "b", "c"]}, "field 'choices' is ['a', 'b', 'c']; give"),
        ("mmlu", {**MMLU, "choices": ["a", "b", "c", " "]}, "field 'choices' has an empty text"),
        ("mmlu", {**MMLU, "subject": " "}, "field 'subject' is empty"),
        ("math", {"problem": "p", "solution": "It is 4."}, "field 'solution' boxes no answer"),
        ("math", {"problem": "p", "solution": r"\boxed{4"}, "field 'solution' boxes no answer"),
        ("humaneval", {"task_id": "t", "prompt": "p"}, "has no field 'canonical_solution'"),
        ("humaneval", {**PROGRAM, "task_id": "\x1b[2J"}, "field 'task_id' is '\\x1b[2J'; give"),
        ("humaneval", {**PROGRAM, "entry_point": "f);exit("}, "'entry_point' is 'f);exit('; give"),
        ("humaneval", {**PROGRAM, "prompt": "def g():\n"}, "defines no function 'f'"),
        (
            "humaneval",
            {**PROGRAM, "test": "assert f()"},
            "field 'test': defines no function 'check'",
        ),
        ("humaneval", {**PROGRAM, "test": "def check(" * 9}, "field 'test': no Python ("),
        ("mmlu", {**MMLU, "subject": "a" * 300}, "field 'subject' has 300 characters; at most 200"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, benchmark: str, row: object, said: str) -> None:
    path = tmp_path / "bad.json"
    good = load.load_items(benchmark, "packages").rows[0]
    path.write_text(json.dumps([good, row]))
    with pytest.raises(ItemsError) as caught:
        load.load_items(benchmark, (path,))
    assert str(caught.value).startswith(f"{benchmark}: {path}: row 2 ")
    assert said in str(caught.value)


def test_an_id_names_one_item(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    write_lines(path, [PROGRAM, PROGRAM, {**PROGRAM, "canonical_solution": "    return 2\n"}])
    with pytest.raises(ItemsError, match=r"row 3 has the id 't/1' of .*row 1, and is another item"):
        load.load_items("humaneval", (path,))


def _gzip_bomb(folder: Path) -> None:
    with gzip.open(folder / "test.jsonl.gz", "wb", 9) as file:
        file.write(bytes(2**25))


def _parquet_bomb(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 64, pyarrow.int32()), pyarrow.array(["x" * 2**23])
    )
    table = pyarrow.table({"question": texts, "answer": ["1"] * 64})
    pyarrow.parquet.write_table(table, folder / "test.parquet", compression="zstd")
    assert (folder / "test.parquet").stat().st_size < 10_000


def _a_row_too_many(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"question": pyarrow.nulls(10**6 + 1, pyarrow.string())})
    pyarrow.parquet.write_table(table, folder / "test.parquet")


def _far_date(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    when = pyarrow.array([9 * 10**18], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"question": when}), folder / "test.parquet")


def _readme(folder: Path, data_files: str) -> None:
    text = f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n"
    (folder / "README.md").write_text(text)


def _named_fifo(folder: Path) -> None:
    os.mkfifo(folder / "mine.jsonl")
    _readme(folder, "mine.jsonl")


def _saved_elsewhere(folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret"}]}))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_gzip_bomb, r"row 1: more than 16,777,216 bytes in a line; no benchmark needs so many"),
        (_parquet_bomb, r"row 1 field 'question' is too long: an item has at most 4,194,304 char"),
        (_a_row_too_many, r"more than 1,000,000 rows"),
        (_far_date, r"can't be read as parquet: OverflowError: date value out of range"),
        (_named_fifo, r"mine\.jsonl: can't be read as JSON lines: no regular file"),
        (_saved_elsewhere, r"names '\.\./secret', which is none of its own files"),
        (lambda f: _readme(f, "../../*"), r"README\.md: configs: data_files names '\.\./\.\./\*'"),
        (
            lambda f: _readme(f, "/etc/passwd"),
            r"data_files names '/etc/passwd'; give the name of a",
        ),
        (lambda f: _readme(f, "{test: [3]}"), r"data_files names 3; give the name of a file"),
        (lambda f: os.mkfifo(f / "README.md"), r"no items here"),
        (lambda f: os.mkfifo(f / "test.jsonl"), r"no items here"),
    ],
)
def test_a_hostile_folder_costs_a_line(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path)
    with pytest.raises(ItemsError, match=said) as caught:
        load.load_items("gsm8k", (tmp_path,))
    assert str(caught.value).startswith("gsm8k: ")
    assert "\n" not in str(caught.value)


def test_mmlu_answers_may_be_letters(tmp_path: Path) -> None:
    letters, numbers = tmp_path / "letters.jsonl", tmp_path / "numbers.jsonl"
    letters.write_text(json.dumps({**MMLU, "answer": "C", "subject": "College Physics"}))
    numbers.write_text(json.dumps({**MMLU, "subject": "college_physics"}))
    assert load.load_items("mmlu", (letters,)).rows == load.load_items("mmlu", (numbers,)).rows


def problems(count: int, first: int = 0) -> list[dict[str, str]]:
    numbers = range(first, first + count)
    return [{"question": f"What is {n} + 1?", "answer": f"{n + 1}\n#### {n + 1}"} for n in numbers]


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _named(folder: Path, test: list[dict[str, str]], train: list[dict[str, str]]) -> None:
    write_lines(folder / "test.jsonl.gz", test)
    write_lines(folder / "test_socratic.jsonl", problems(2, 900))
    write_lines(folder / "train.jsonl", train)
    (folder / "notes.json").write_text("no items")


def _hub_clone(folder: Path, test: list[dict[str, str]], train: list[dict[str, str]]) -> None:
    write_parquet(folder / "main" / "test-00000-of-00001.parquet", test)
    write_parquet(folder / "main" / "train-00000-of-00002.parquet", train[:3])
    write_parquet(folder / "main" / "train-00001-of-00002.parquet", train[3:])
    write_parquet(folder / "socratic" / "test-00000-of-00001.parquet", problems(2, 900))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: socratic\n  data_files: socratic/test-*\n"
        "- config_name: main\n  data_files:\n  - {split: train, path: main/train-*}\n"
        "  - {split: test, path: [main/test-*]}\n---\n# GSM8K\n"
    )


def _data_folder(folder: Path, test: list[dict[str, str]], train: list[dict[str, str]]) -> None:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", test)
    (folder / "data" / "train.json").write_text(json.dumps(train))


def _saved(folder: Path, test: list[dict[str, str]], train: list[dict[str, str]]) -> None:
    import datasets

    parts = {"test": datasets.Dataset.from_list(test), "train": datasets.Dataset.from_list(train)}
    datasets.DatasetDict(parts).save_to_disk(folder)


@pytest.mark.parametrize("write", [_named, _hub_clone, _data_folder, _saved])
def test_folders_hold_the_items_and_the_pool(tmp_path: Path, write: Any) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    write(folder, problems(7), problems(6, 100))
    items = load.load_items("gsm8k", (folder,))
    assert [(row["question"], row["gold"]) for row in items.rows] == [
        (row["question"], row["answer"]) for row in problems(7)
    ]
    assert [row["question"] for row in items.pool] == [r["question"] for r in problems(6, 100)]
    assert not items.overlaps
    assert items.describe(3) == f"files: 3 of 7 items ({folder})"


@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl.gz", "mine.json", "mine"])
def test_lone_files_of_every_kind_are_the_items(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "mine":
        import datasets

        datasets.Dataset.from_list(problems(4)).save_to_disk(path)
    else:
        (write_parquet if name.endswith("parquet") else write_lines)(path, problems(4))
    items = load.load_items("gsm8k", (path,))
    assert [row["question"] for row in items.rows] == [row["question"] for row in problems(4)]
    assert items.pool == load.load_items("gsm8k", "packages").rows


def test_a_pool_that_holds_all_items_is_noticed(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", problems(4))
    for first, held in ((3, False), (0, True)):
        write_lines(tmp_path / "train.jsonl", problems(5, first))
        items = load.load_items("gsm8k", (tmp_path,))
        assert items.overlaps == held
        assert [row["question"] for row in items.pool] == [
            r["question"] for r in problems(5, first)
        ]


def test_a_folder_without_test_items_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ItemsError, match=r"no items here; put test\.jsonl"):
        load.load_items("gsm8k", (tmp_path,))
    write_lines(tmp_path / "train.jsonl", problems(2))
    with pytest.raises(ItemsError, match=r"no test split \(there is: train\)"):
        load.load_items("gsm8k", (tmp_path,))
    with pytest.raises(ItemsError, match=r"gsm8k: .*absent: no such file or folder"):
        load.load_items("gsm8k", (tmp_path / "absent",))
    (tmp_path / "test.parquet").write_text("no parquet")
    with pytest.raises(ItemsError, match=r"test\.parquet: can't be read as parquet"):
        load.load_items("gsm8k", (tmp_path,))


def test_the_hub_is_not_asked_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # an address that would answer, were it asked
    with _answering(monkeypatch):
        assert not hub.hub_reachable()
        assert load.load_items("gsm8k", "auto").kind == "packages"


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
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.5)
    began = time.monotonic()
    assert load.load_items("humaneval", "auto").kind == "packages"
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
        value, stderr = estimates.ratio_of_totals(totals, weights)
        assert stderr is not None
        covered += abs(value - 1.3) < 2.02 * stderr
    assert 0.90 < covered / 400 < 0.99


def test_ratio_of_equal_weights_is_the_mean() -> None:
    totals = [3.0, 4.0, 8.0, 1.0]
    value, stderr = estimates.ratio_of_totals(totals, [2.0] * 4)
    plain = estimates.mean([t / 2 for t in totals])
    assert (value, stderr) == (pytest.approx(plain[0]), pytest.approx(plain[1]))
    with pytest.raises(ValueError, match="no weight"):
        estimates.ratio_of_totals([], [])


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


def test_further_names_are_asked_after_the_four() -> None:
    settings = EvalSettings.model_validate(
        {
            "benchmarks": {"piqa": {}, "math": {}, "arc_easy": {"items": 3}},
            "watch": ["lambada", "mmlu"],
        }
    )
    assert list(settings.asked) == ["mmlu", "math", "piqa", "arc_easy", "lambada"]
    assert settings.asked["arc_easy"].items == 3
    watched = EvalSettings.model_validate({"watch": {"piqa": {"items": 5, "data": "here.jsonl"}}})
    assert watched.asked["piqa"].data == (Path("here.jsonl"),)
    assert "piqa" not in watched.benchmarks
    assert EvalSettings.model_validate_json(watched.model_dump_json()) == watched


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

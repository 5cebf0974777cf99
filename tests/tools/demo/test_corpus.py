"""The demo's text: real, repeatable, deduplicated and free of benchmark items."""

import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from mixloop.tools.demo import corpus
from mixloop.tools.demo.corpus import SOURCES, HarvestedSource, harvest, in_latex
from mixloop.tools.demo.decontamination import HeldOut, packaged_items

LIMIT = 300_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HarvestedSource]:
    return harvest(tmp_path_factory.mktemp("text"), limit_bytes=LIMIT, seed=7)


def texts(source: HarvestedSource) -> list[str]:
    with source.path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def test_four_sources_of_the_asked_size(sources: dict[str, HarvestedSource]) -> None:
    assert list(sources) == ["code", "prose", "math-docs", "word-problems"] == list(SOURCES)
    for source in sources.values():
        documents = texts(source)
        assert len(documents) == source.documents == len(set(documents)) > 10
        assert sum(len(text.encode()) for text in documents) == source.bytes
        assert 0.7 * LIMIT < source.bytes <= LIMIT


def test_figures_in_words(sources: dict[str, HarvestedSource]) -> None:
    lines = [source.describe() for source in sources.values()]
    assert [line.split(":")[0] for line in lines] == list(sources)
    assert all(re.search(r"\d documents, 0\.\d\d MB", line) for line in lines)


def test_sources_are_what_they_say(sources: dict[str, HarvestedSource]) -> None:
    code = "\n".join(texts(sources["code"]))
    assert code.count("\ndef ") + code.count("    def ") > 100
    assert sum("\\frac" in text or "math:" in text for text in texts(sources["math-docs"])) > 20
    problems = texts(sources["word-problems"])
    assert all(re.match(r"(Question|Q|Problem):", text) for text in problems)
    plain = sum("\n#### " in text for text in problems)
    latex = sum("\\boxed{" in text for text in problems)
    assert plain + latex == len(problems)
    assert min(plain, latex) > len(problems) / 5
    assert len({text.split()[1:4].__str__() for text in problems}) > len(problems) / 5


def test_same_seed_same_bytes_in_another_process(
    sources: dict[str, HarvestedSource], tmp_path: Path
) -> None:
    program = (
        "import sys, pathlib\n"
        "from mixloop.tools.demo.corpus import harvest\n"
        f"harvest(pathlib.Path(sys.argv[1]), limit_bytes={LIMIT}, seed=7)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "5"}, timeout=120)
    for name, source in sources.items():
        assert (tmp_path / f"{name}.jsonl").read_bytes() == source.path.read_bytes()


def test_another_seed_gives_other_documents(sources: dict[str, HarvestedSource]) -> None:
    for name in ("code", "word-problems"):
        assert list(islice(SOURCES[name](8), 5)) != texts(sources[name])[:5]


def runs_of_words(text: str, length: int) -> set[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_no_benchmark_item_is_in_the_text(sources: dict[str, HarvestedSource]) -> None:
    """By brute force, independently of the index that the harvest uses."""
    items = packaged_items()
    for phrase in (
        "There are 15 trees in the grove",  # GSM8K's worked examples
        "If $\\det \\mathbf{A} = 2$",  # MATH's
        "has_close_elements",  # HumanEval
        "A refracting telescope",  # MMLU
    ):
        assert any(phrase in item for item in items), phrase
    banned = set().union(*(runs_of_words(item, 13) for item in items))
    banned = {run for run in banned if re.search("[a-z]", run)}
    for source in sources.values():
        for text in texts(source):
            assert not runs_of_words(text, 13) & banned


def test_held_out_documents_are_dropped_and_counted(
    sources: dict[str, HarvestedSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted = next(text for text in texts(sources["word-problems"]) if len(text.split()) > 50)
    monkeypatch.setattr(corpus, "packaged_items", lambda: [unwanted])
    again = harvest(tmp_path, limit_bytes=50_000, seed=7)
    assert again["word-problems"].contaminated >= 1
    assert unwanted not in texts(again["word-problems"])


@pytest.mark.parametrize("start", range(0, 15))
def test_an_overlap_is_found_wherever_it_starts(start: int) -> None:
    words = [f"word{n}" for n in range(40)]
    index = HeldOut([" ".join(words)])
    filler = "something else entirely "
    assert index.overlaps(filler * start + ", ".join(words[start : start + 13]).upper() + ".")
    assert not index.overlaps(filler * start + " ".join(words[start : start + 12]) + " end")


def test_short_held_out_texts_count_whole() -> None:
    index = HeldOut(["one two three four five six seven eight", "far too short", "1 " * 20])
    assert index.overlaps("x one two three four five six seven eight y")
    assert not index.overlaps("one two three four five six seven and far too short " + "1 " * 20)


def test_formulas_become_latex_and_stay_what_they_are() -> None:
    assert in_latex("so 28 x 4 = 112.") == r"so $28 \cdot 4 = 112$."
    assert in_latex("Solve for k: 3*k**2 - 12*4 = 8") == r"Solve for k: $3k^{2} - 12 \cdot 4 = 8$"
    assert in_latex("(7.0 - 6.0i) + (-1.0 + 9.0i)") == "$(7.0 - 6.0i) + (-1.0 + 9.0i)$"
    for other in ("$5 x 3 = $15", "I have 15 trees - a lot", r"$\frac{2}{4}$"):
        assert in_latex(other) == other


def test_problems_vary_and_say_only_what_is_asked() -> None:
    problems = list(islice(SOURCES["word-problems"](2), 3_000))
    assert len(set(problems)) > 2_850
    assert not any("Give only" in text for text in problems)


def test_a_missing_generator_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("reasoning_gym")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ModuleNotFoundError, match=r'reasoning_gym.*pip install "mixloop\[demo\]"'):
        harvest(tmp_path / "text", limit_bytes=LIMIT, seed=1)
    assert not (tmp_path / "text").exists()

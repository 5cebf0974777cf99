"""The picture of a run: exact places, legible labels, no warnings."""

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from mixloop.controller.report import draw
from mixloop.controller.report.figures import _marks, _mixture, _rows

BUDGET = 2_000_000
SEGMENTS = [
    {"tokens": 0, "weights": {"code": 0.1, "prose": 0.9}},
    {"tokens": 412_160, "weights": {"code": 0.3, "prose": 0.6, "maths": 0.1}},
]
HISTORY: list[dict[str, Any]] = [
    {"id": "d-000001", "step": 90, "tokens": 180_000, "verdict": "hold", "applied_tokens": None,
     "weights_before": SEGMENTS[0]["weights"], "weights_after": None},
    {"id": "d-000002", "step": 190, "tokens": 390_000, "verdict": "intervene",
     "applied_tokens": 412_160, "weights_before": SEGMENTS[0]["weights"],
     "weights_after": SEGMENTS[1]["weights"]},
]  # fmt: skip


def evaluations(gain: float = 0.0) -> list[dict[str, Any]]:
    def score(tokens: int, floor: float) -> dict[str, Any]:
        value = floor + 2 * math.exp(-tokens / 5e5) - gain * tokens / BUDGET
        return {"bits_per_byte": {"value": value, "stderr": 0.05, "n": 8}}

    return [
        {
            "tokens": tokens,
            "step": tokens // 2048,
            "benchmarks": {"gsm8k": score(tokens, 1.2), "humaneval": score(tokens, 1.0)},
        }
        for tokens in range(200_000, BUDGET + 1, 200_000)
    ]


def texts_of(svg: Path) -> list[str]:
    found = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()) for node in found]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draws_a_run(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"run.{suffix}"
    path = draw(
        HISTORY, evaluations(0.5), SEGMENTS, out, title="a run", budget=BUDGET,
        control=evaluations(),
    )  # fmt: skip
    assert path == out
    start = b"\x89PNG" if suffix == "png" else b"<?xml"
    assert out.read_bytes().startswith(start)
    assert out.stat().st_size > 5_000


def test_says_what_it_shows(tmp_path: Path) -> None:
    out = draw(
        HISTORY, evaluations(0.5), SEGMENTS, tmp_path / "run.svg", title="cost $5 & <more>",
        budget=BUDGET, control=evaluations(),
    )  # fmt: skip
    texts = texts_of(out)
    for expected in ("d-000002", "gsm8k", "humaneval", "maths", "left alone", "1.5M", "60%"):
        assert expected in texts, texts
    assert "cost $5 & <more>" in texts
    assert "d-000001" not in texts  # a hold changed nothing


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    one, two = (
        draw(HISTORY, evaluations(), SEGMENTS, tmp_path / name, title="t", budget=BUDGET)
        for name in ("one.svg", "two.svg")
    )
    assert one.read_bytes() == two.read_bytes()


def test_shares_change_exactly_where_a_segment_starts() -> None:
    axes = Figure().subplots()
    _mixture(axes, SEGMENTS, BUDGET)
    areas = [one for one in axes.collections if isinstance(one, PolyCollection)]
    code = areas[0].get_paths()[0].vertices
    tops = {(x, y) for x, y in code.tolist() if y > 0}
    assert {(0.0, 0.1), (412_160.0, 0.1), (412_160.0, 0.3), (BUDGET, 0.3)} <= tops
    assert [area.get_label() for area in areas] == ["code", "prose", "maths"]


def test_marks_sit_on_the_first_token_under_the_new_order() -> None:
    assert _marks(HISTORY) == [(412_160.0, "d-000002")]


def test_crowded_labels_take_turns_and_then_give_way() -> None:
    marks = [(float(n), f"d-{n}") for n in range(5)]
    assert _rows(marks, 2.5) == [0, 1, 2, 0, 1]
    assert _rows(marks, 4.0) == [0, 1, 2, None, 0]


def test_a_crowd_of_interventions_is_labelled_briefly(tmp_path: Path) -> None:
    history = [
        {**HISTORY[1], "id": f"d-{n:06d}", "applied_tokens": 600_000 + n * 40_000}
        for n in range(1, 9)
    ]
    out = draw(history, [], SEGMENTS, tmp_path / "run.svg", title="t", budget=BUDGET)
    assert {"d-1", "d-8", "no evaluation yet"} <= set(texts_of(out))


def test_gaps_and_odd_figures_do_no_harm(tmp_path: Path) -> None:
    scores = evaluations()
    scores[0]["benchmarks"] = {}
    scores[1]["benchmarks"]["gsm8k"] = {"exact_match": {"value": 0.0, "stderr": 0.0, "n": 8}}
    scores[2]["benchmarks"]["gsm8k"]["bits_per_byte"] = {"value": math.nan, "stderr": None}
    scores[3]["benchmarks"]["gsm8k"]["bits_per_byte"]["stderr"] = None
    many = {f"source-{n}": 1 / 20 for n in range(20)}
    segments = [{"tokens": 0, "weights": many}]
    out = draw([], scores, segments, tmp_path / "run.png", title="t", budget=BUDGET)
    assert out.stat().st_size > 5_000


def test_bad_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.svg, not '\.jpg'"):
        draw([], [], SEGMENTS, tmp_path / "run.jpg", title="t", budget=BUDGET)
    with pytest.raises(ValueError, match="no segments"):
        draw([], [], [], tmp_path / "run.png", title="t", budget=BUDGET)

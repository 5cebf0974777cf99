"""The report: one page, self-contained, escaped, and true to the journal."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common.errors import BadInput
from mixloop.controller.report import gather, write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=y>\x1b[31m & more"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_the_page_tells_the_run_and_loads_nothing(play: Any, tmp_path: Path) -> None:
    run = play()
    run.train(4)
    run.tell("set", "code=0.15", "--reason", HOSTILE)
    run.train(14)
    done = CliRunner().invoke(app, ["report", str(run.path)])
    assert done.exit_code == 0, done.output
    text = (run.paths.dir / "report.html").read_text()
    page = Page(text)
    entries = run.history()
    assert all(entry["id"] in page.text for entry in entries)
    applied = [e for e in entries if e["applied_step"] is not None]
    assert len(applied) >= 2
    for entry in applied:
        assert f"generation {entry['generation']} from step {entry['applied_step']}" in page.text
    assert "gsm8k bits_per_byte gain +" in page.text
    assert "alert(1)" in page.text, "what a person wrote is shown"
    assert "\x1b" not in text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form"}
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href"):
            value = attributes.get(key)
            assert value is None or value.startswith("data:")
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not re.search(r"https?://", re.sub(r"data:[^\"']+", "", text))


def test_the_numbers_are_the_journals(play: Any) -> None:
    run = play(guards={"max_change": 0.2, "max_epochs": 1.0})
    run.train(12)
    found = json.loads(json.dumps(gather(run.path).to_json()))
    assert found["max_epochs"] == 1.0
    ledger = {one["source"]: one for one in found["ledger"]}
    status = run.controller.observer.news.status
    for name, source in status.sources.items():
        assert ledger[name]["tokens"] == source.tokens
        left = (found["budget"] - status.tokens) * ledger[name]["weight"] / source.unique_tokens
        assert ledger[name]["at_the_end"] == pytest.approx(source.epochs + left)
        if ledger[name]["cap_at"] is not None:
            more = (ledger[name]["cap_at"] - status.tokens) * ledger[name]["weight"]
            reached = source.epochs + more / source.unique_tokens
            assert reached == pytest.approx(1.0, abs=1e-3)
    first = next(e for e in found["decisions"] if e["applied_step"] is not None)
    effect = first["outcome"]["benchmarks"]["gsm8k"]
    assert effect["to_step"] == first["outcome"]["step"]
    assert effect["gain"] == pytest.approx((effect["to_step"] - effect["from_step"]) / 1000)


def test_nothing_to_tell_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run here"):
        write_report(tmp_path / "nowhere", None)

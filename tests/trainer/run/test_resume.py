"""What is wrong with a job is said before it starts, in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import train_tokenizer
from mixloop.trainer.train import main


def body(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    sources = {"a": {"path": str(tmp_path / "a")}, "b": {"path": str(tmp_path / "b")}}
    settings = {"sequence_length": 8, "device": "cpu"}
    start: dict[str, Any] = {"run": "r", "dir": str(tmp_path / "run"), "budget": "1M"}
    return start | {"sources": sources, "settings": settings} | changes


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores a and b, and c of another tokenizer."""
    folder = tmp_path_factory.mktemp("ready")
    (folder / "text.txt").write_text("some words to tokenise " * 20)
    for name, size in (("one", 260), ("two", 270)):
        train_tokenizer([(folder / "text.txt").read_text()], folder / name, size)
    for name, tokenizer in (("a", "one"), ("b", "one"), ("c", "two")):
        prepare([str(folder / "text.txt")], folder / name, str(folder / tokenizer))
    return folder


def sources(ready: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    plain = {name: {"path": str(ready / name)} for name in ("a", "b")}
    return {name: plain.get(name, {}) | changes.get(name, {}) for name in {**plain, **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, "sede: unknown key"),
        ({"budget": "12Q"}, "budget: '12Q' is not a token count"),
        ({"budget": 0}, "budget: the budget is 0 tokens"),
        ({"settings": {"sequence_lenght": 4}}, "settings.sequence_lenght: unknown key"),
        ({"settings": {"micro_batch": 0}}, "settings.micro_batch: .* greater than 0"),
        ({"settings": {"precision": "fp8"}}, "settings.precision: "),
        ({"settings": {"model": {"hidden_size": 7}}}, "hidden_size 7 is not a multiple"),
        ({"settings": {"warmup": "2M"}}, "warmup 2,000,000 and decay 0 tokens together exceed"),
        ({"sources": {}}, "sources: "),
        ({"sources": {"a": {"path": "none"}}}, "sources.a: none: no token store there"),
        ({"a": {"weight": 0.5}}, "sources.b: no weight though others have one"),
        ({"a": {"weight": 0.5}, "b": {"weight": 0.4}}, "weights sum to 0.9, not 1"),
        ({"a": {"weight": 1.0}, "b": {"weight": 0.5, "standby": True}}, "sources.b: weight 0.5 on"),
        ({"a": {"standby": True}, "b": {"standby": True}}, "all are standby"),
        ({"c": {}}, "sources.c: made with another tokenizer than sources.a"),
        ({"settings": {"sequence_length": 5000}}, "fewer than one sample of sequence_length 5000"),
        ({"tokenizer": "two"}, "is not the tokenizer sources.a was prepared with"),
    ],
)
def test_bad_jobs_get_one_line_and_exit_code_2(
    tmp_path: Path,
    ready: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    named = {key: value for key, value in changes.items() if key in ("a", "b", "c")}
    if "c" in named:
        named["c"] = {"path": str(ready / "c")}
    rest = {key: value for key, value in changes.items() if key not in named}
    if "tokenizer" in rest:
        rest["tokenizer"] = str(ready / rest["tokenizer"])
    made = body(tmp_path) | {"sources": sources(ready, **named)} | rest
    (tmp_path / "job.json").write_text(json.dumps(made))
    assert main([str(tmp_path / "job.json")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not (tmp_path / "run").exists()


def test_the_job_is_checked_without_torch(tmp_path: Path, ready: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(body(tmp_path, sources=sources(ready))))
    program = (
        "import sys; from pathlib import Path\n"
        "from mixloop.trainer.run.resume import check_job\n"
        "from mixloop.trainer.config.job import load_job\n"
        "check_job(load_job(Path(sys.argv[1])))\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "job.json")], check=True)

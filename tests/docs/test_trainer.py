"""docs/trainer.md: its code runs as it stands, on its own run.yaml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixloop.contract import read_schedule, read_status
from mixloop.evals.engine import load_checkpoint
from mixloop.trainer.config import TrainerSettings
from mixloop.trainer.loader import read_saved_manifest
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import train_tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_the_code_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {name: f"{name} says what a model reads; " * 300 for name in ("web", "code")}
    tokenizer = train_tokenizer(texts.values(), tmp_path / "tokenizer", 280)
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
        prepare([str(tmp_path / f"{name}.txt")], tmp_path / "data" / name, str(tokenizer))
    batches: list[Any] = []
    names: dict[str, Any] = {
        "train_on": lambda ids, labels: (
            batches.append((ids.shape, bool((ids == labels).all()))) or 2.0
        )
    }
    for language, block in BLOCKS:
        if language == "yaml":
            body = yaml.safe_load(block)
            if "run" in body:
                (tmp_path / "run.yaml").write_text(block)
            else:  # a part of one
                TrainerSettings.model_validate(body["trainer"])
            continue
        exec(compile(block, "docs/trainer.md", "exec"), names)
    whole = -(-100_000 // (8 * 32)) * 2
    assert batches == [((4, 32), True)] * (2 * whole)  # one loop each, both to the budget's end
    names["dataset"].close()
    names["loader"].close()
    status = read_status("run/status.json").value
    assert status is not None
    assert (status.finished, status.loss) == (True, 2.0)
    assert read_schedule("run/schedule.jsonl").incarnation >= 2
    folder = tmp_path / "run" / f"checkpoint-{whole // 2}"
    assert read_saved_manifest(folder).value is not None
    assert load_checkpoint(folder).tokenizer.eos_token_id == 0


def test_the_room_itself_imports_without_torch() -> None:
    code = (
        "import sys, mixloop.trainer, mixloop.contract.paths, mixloop.trainer.mixing.order; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

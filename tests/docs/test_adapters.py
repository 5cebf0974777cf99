"""docs/adapters.md: its code runs as it stands, on its own run.yaml."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from mixloop.contract import read_status
from mixloop.controller.config import layout_of, load_config
from mixloop.trainer.sources import StoreInfo

TEXT = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## Hugging Face Trainer")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", SECTION, re.M | re.S)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_the_hugging_face_section_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("web", "code"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        tokens = np.arange(32 * 300, dtype="<u2") % 64
        tokens.tofile(folder / "tokens.bin")
        info = StoreInfo(tokens.size, 1, "uint16", 64, "t", f"sha256:{name}", 0)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    names: dict[str, Any] = {"model": LlamaForCausalLM(config)}
    [(_, configuration), (language, block)] = BLOCKS
    assert language == "python"
    (tmp_path / "run.yaml").write_text(configuration)
    exec(compile(block, "docs/adapters.md", "exec"), names)
    status = read_status("run/status.json").value
    assert status is not None
    assert (status.step, status.finished) == (8192 // (32 * 8), True)
    run = load_config(tmp_path / "run.yaml")
    layout = layout_of(run, tmp_path / "unused")
    for step in (16, 32):
        manifest = layout.manifest(f"checkpoint-{step}")
        assert manifest is not None
        assert manifest.tokens == step * 8 * 32

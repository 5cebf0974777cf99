"""Attention within documents, and a run whose sources are of all formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from mixloop.controller.checks import check_run
from mixloop.controller.cli import app
from mixloop.controller.config import load_config
from mixloop.controller.errors import BadInput
from mixloop.controller.launch import job_of
from mixloop.trainer.contract import RunPaths, read_status
from mixloop.trainer.job import JobError
from mixloop.trainer.model import check_document_mask, sequence_losses
from mixloop.trainer.prepare import prepare
from mixloop.trainer.store import Store
from mixloop.trainer.tokenizer import train_tokenizer
from mixloop.trainer.train import train

MODEL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EOS = 0


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **MODEL, **options)).eval()


def test_the_loss_of_a_window_is_that_of_its_documents_alone() -> None:
    random = torch.Generator().manual_seed(1)
    parts = [torch.randint(1, 50, (n,), generator=random) for n in (6, 1, 11, 4)]
    parts = [torch.cat([part, torch.tensor([EOS])]) for part in parts[:-1]] + [parts[-1]]
    window = torch.cat(parts)[None]
    model = llama()
    with torch.no_grad():
        whole = float(sequence_losses(model, window, EOS)) * (window.shape[1] - 1)
        alone = 0.0
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            logits = model(input_ids=part[None]).logits[0].log_softmax(-1)
            targets = part[1:] if after is None else torch.cat([part[1:], after[:1]])
            alone -= float(logits[torch.arange(len(targets)), targets].sum())
        across = float(sequence_losses(model, window)) * (window.shape[1] - 1)
    assert whole == pytest.approx(alone, rel=1e-5)
    assert abs(whole - across) > 1e-3


def test_attention_of_another_kind_is_refused() -> None:
    check_document_mask(llama())
    with pytest.raises(JobError, match=r"document_mask.*eager"):
        check_document_mask(llama(attn_implementation="eager"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """run.yaml with one source of every format, all of the same documents."""
    from datasets import Dataset
    from tests.test_sources import write_datatrove, write_megatron

    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["a", "loop", "of", "data"], 30)) for _ in range(40)]
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer", 280)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    info = prepare([str(tmp_path / "a.jsonl")], tmp_path / "own", str(tokenizer), shard_size=500)
    ids = Store.open(tmp_path / "own").tokens
    documents = np.split(ids, np.flatnonzero(ids == info.eos_id)[:-1] + 1)
    write_megatron(tmp_path / "meg", documents)
    write_datatrove(tmp_path / "ds", {"0": documents[:9], "1": documents[9:]})
    Dataset.from_dict({"ids": [d.tolist() for d in documents]}).save_to_disk(tmp_path / "arrow")
    eos = {"eos_id": info.eos_id}
    config = {
        "run": {"id": "formats", "dir": "run"},
        "budget": 16 * 4 * 10,
        "sources": {
            "own": {"path": "own"},
            "meg": {"path": "meg", **eos},
            "ds": {"path": "ds", **eos},
            "arrow": {"path": "arrow", "column": "ids", **eos},
        },
        "evals": {"benchmarks": {"mmlu": {"items": 2}}},
        "policy": {"use": "static"},
        "trainer": {
            "tokenizer": "tokenizer",
            "model": MODEL,
            "sequence_length": 16,
            "micro_batch": 4,
            "document_mask": True,
            "device": "cpu",
            "precision": "fp32",
            "threads": 1,
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run.yaml"


def test_a_run_on_sources_of_all_formats(run: Path) -> None:
    shown = CliRunner().invoke(app, ["check", str(run), "--json"])
    assert shown.exit_code == 0, shown.output
    sources = json.loads(shown.stdout)["sources"]
    formats = {name: source["format"] for name, source in sources.items()}
    assert formats == {"own": "store", "meg": "megatron", "ds": "datatrove", "arrow": "arrow"}
    assert len({source["unique_tokens"] for source in sources.values()}) == 1
    verified = CliRunner().invoke(app, ["verify", str(run), "--json"])
    assert json.loads(verified.stdout) == {
        str(run.parent / path): [] for path in ("own", "meg", "ds", "arrow")
    }
    job = job_of(load_config(run))
    losses = []
    for name, masked in (("run", True), ("other", False)):
        settings = job.settings.model_copy(update={"document_mask": masked})
        one = job.model_copy(update={"dir": run.parent / name, "settings": settings})
        assert train(one) == 0
        status = read_status(RunPaths(one.dir).status)
        assert status is not None
        assert status.loss is not None
        assert {source.tokens for source in status.sources.values()} == {16 * 10}
        losses.append(status.loss)
    assert losses[0] != losses[1]


def test_what_is_wrong_with_foreign_sources_is_said_at_the_start(run: Path) -> None:
    config = yaml.safe_load(run.read_text())

    def refused(section: str, key: str, value: Any) -> str:
        changed = json.loads(json.dumps(config))
        place = changed["sources"].get(section, changed["trainer"])
        place.pop(key) if value is None else place.update({key: value})
        run.write_text(yaml.safe_dump(changed))
        with pytest.raises(BadInput) as caught:
            check_run(run)
        return str(caught.value)

    assert "give sources.ds.eos_id" in refused("ds", "eos_id", None)
    assert "sources.meg ends documents with 7" in refused("meg", "eos_id", 7)
    assert "sources.arrow.path" in refused("arrow", "column", "input_ids")
    assert "not an option of megatron" in refused("meg", "dtype", "uint16")
    own = run.parent / "own" / "tokens-00001.bin"
    own.write_bytes(own.read_bytes()[:-2])
    assert "prepare again" in refused("trainer", "document_mask", True)
    done = CliRunner().invoke(app, ["verify", str(run.parent / "own")])
    assert done.exit_code == 1
    assert own.name in done.output


def test_negative_ids_are_no_tokens(run: Path) -> None:
    from tests.test_sources import write_megatron

    write_megatron(run.parent / "meg", [np.array([1, 2, -3] * 40)], code=4)
    with pytest.raises(BadInput, match="holds the id -3"):
        check_run(run)

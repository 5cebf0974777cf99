"""`trainer.document_mask`: attention of the reference trainer stays within documents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mixloop.trainer.config import JobError
from mixloop.trainer.reference.model import check_document_mask, sequence_losses

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

"""Log-probabilities of gold answers, token by token, through which gradients can flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mixloop.evals.architectures import may_be_padded
from mixloop.evals.engine import CheckpointLM, keeps_logits, length_batches

from .gold_answers import GoldAnswer

# tokens of a pass whose activations are kept for the way back
CPU_TOKENS, DEVICE_TOKENS = 2048, 8192

Take = Callable[[int, torch.Tensor], torch.Tensor | None]
"""Hears an answer's number and its tokens' log-probabilities; returns what is to be minimised."""


def read_answers(
    lm: CheckpointLM, answers: Sequence[GoldAnswer], batch_tokens: int | None, take: Take
) -> None:
    """Runs the answers in batches of like lengths, as transformers computes its models.

    What `take` returns is added up over a batch and sent back into the parameters' `grad`.

    Args:
        lm: The model; its parameters are left as they are.
        answers: At least one.
        batch_tokens: Rows times longest row of a pass; None: what suits the device.
        take: Called once for each answer.
    """
    model = lm.model
    default = CPU_TOKENS if lm.device.type == "cpu" else DEVICE_TOKENS
    rows = [tuple(answer.head + answer.tail[:-1]) for answer in answers]
    with lm.as_stock():
        padded = may_be_padded(model)
        for batch in length_batches(rows, batch_tokens or default, padded=padded):
            losses: list[torch.Tensor] = []
            for index, logprobs in zip(
                batch,
                _logprobs(model, lm.device, [answers[i] for i in batch]),
                strict=True,
            ):
                loss = take(index, logprobs)
                losses += [loss] if loss is not None else []
            if losses:
                torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def _logprobs(
    model: Any, device: torch.device, answers: Sequence[GoldAnswer]
) -> list[torch.Tensor]:
    """Per answer its tokens' log-probabilities [len(tail)], in one forward pass.

    Rows are padded behind, where a causal model never looks.
    """
    rows = [answer.head + answer.tail[:-1] for answer in answers]
    tokens = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    first = min(len(answer.head) for answer in answers) - 1
    keeps = keeps_logits(model)
    options = {"logits_to_keep": tokens.shape[1] - first} if keeps else {}
    out = model(input_ids=tokens.to(device), use_cache=False, **options)
    logits = out.logits if keeps else out.logits[:, first:]
    found = []
    for index, answer in enumerate(answers):
        begin = len(answer.head) - 1 - first
        scores = torch.log_softmax(logits[index, begin : begin + len(answer.tail)].float(), dim=-1)
        targets = torch.tensor(answer.tail, device=scores.device)
        found.append(scores.gather(1, targets[:, None])[:, 0])
    return found

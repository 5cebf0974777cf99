"""A checkpoint run the plain way: padded rows, batched by length, each computed by itself.

For every causal model that `shared_prefix_lm` can't run. Requests that share all their tokens
(MMLU's four letters) still share one row, and the vocabulary is computed at the needed positions
only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch

from .checkpoint_lm import CheckpointLM, Stopped, Tokens, keeps_logits
from .sampling import Sampling


class PlainLM(CheckpointLM):
    """A causal language model for lm-eval's task code, row by row.

    `batch_tokens` bounds rows * longest row of one forward pass (None: 2048).
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_tokens: int | None = None, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self._batch_tokens = batch_tokens or 2048
        self._tokens = 0
        self._keeps_logits = keeps_logits(model)
        # transformers renamed it in 5.x and warns at the old name
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"

    @property
    def tokens(self) -> int:
        return self._tokens

    def score_sequences(
        self, sequences: Mapping[Tokens, Sequence[int]], tails: Sequence[list[int]]
    ) -> list[tuple[float, bool]]:
        scores: dict[int, tuple[float, bool]] = {}
        for rows in _batches(list(sequences), self._batch_tokens):
            row_tails = [[tails[i] for i in sequences[row]] for row in rows]
            for row, row_scores in zip(rows, self._score(rows, row_tails), strict=True):
                scores.update(zip(sequences[row], row_scores, strict=True))
        return [scores[index] for index in range(len(tails))]

    def _score(
        self, rows: Sequence[Tokens], tails: Sequence[Sequence[list[int]]]
    ) -> list[list[tuple[float, bool]]]:
        """Log-probability and greediness of each row's tails; one forward pass.

        Right padding needs no mask under causal attention.
        """
        width = max(len(row) for row in rows)
        self._tokens += sum(len(row) for row in rows)
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        first = min(
            len(row) - max(len(tail) for tail in row_tails)
            for row, row_tails in zip(rows, tails, strict=True)
        )
        logits = self._logits(tokens.to(self.device), first)
        return [
            [_tail_score(logits[index], len(row) - first, tail) for tail in row_tails]
            for index, (row, row_tails) in enumerate(zip(rows, tails, strict=True))
        ]

    def _logits(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """Logits [n, width - first, vocabulary] from position `first` on."""
        options = {"logits_to_keep": tokens.shape[1] - first} if self._keeps_logits else {}
        logits = self.model(input_ids=tokens, use_cache=False, **options).logits
        return cast(torch.Tensor, logits if self._keeps_logits else logits[:, first:])

    def continue_prompts(
        self, prompts: Sequence[Tokens], sampling: Sampling, max_new_tokens: int, stopped: Stopped
    ) -> list[list[int]]:
        generators = sampling.generators(prompts)
        continuations: list[list[int]] = [[] for _ in prompts]
        longest_first = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        # a decoding step computes one token a row: rows are bounded by their cache alone
        longest = len(prompts[longest_first[0]]) + max_new_tokens
        rows = max(1, 4 * self._batch_tokens // longest)
        for begin in range(0, len(prompts), rows):
            batch = longest_first[begin : begin + rows]
            choose = partial(sampling.choose, generators=[generators[i] for i in batch])
            decoded = self._decode([prompts[i] for i in batch], choose, max_new_tokens, stopped)
            for index, tokens in zip(batch, decoded, strict=True):
                self._tokens += len(prompts[index]) + len(tokens)
                continuations[index] = tokens
        return continuations

    def _decode(
        self,
        prompts: Sequence[Tokens],
        choose: Callable[[torch.Tensor], list[int]],
        max_new_tokens: int,
        stopped: Stopped,
    ) -> list[list[int]]:
        """Decoding of one left-padded batch; rows that stopped ride along unread."""
        tokens, mask = _left_padded(prompts, self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        decoded: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        options = {"logits_to_keep": 1} if self._keeps_logits else {}
        cache: Any = None
        for _ in range(max_new_tokens):
            out = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self._cache_name: cache},
                **options,
            )
            cache = getattr(out, self._cache_name)
            chosen = choose(out.logits[:, -1])
            for row in list(open_rows):
                decoded[row].append(chosen[row])
                if stopped(decoded[row]):
                    open_rows.discard(row)
            if not open_rows:
                break
            tokens = torch.tensor(chosen, device=self.device)[:, None]
            mask = torch.cat([mask, mask.new_ones((len(prompts), 1))], dim=1)
            positions = positions[:, -1:] + 1
        return decoded


def _tail_score(logits: torch.Tensor, end: int, tail: list[int]) -> tuple[float, bool]:
    """Sum of log-probabilities of `tail`, read at the len(tail) positions before `end`."""
    scores = torch.log_softmax(logits[end - len(tail) : end].float(), dim=-1)
    targets = torch.tensor(tail, device=scores.device)
    total = scores.gather(1, targets[:, None]).sum()
    return float(total), bool((scores.argmax(-1) == targets).all())


def _batches(rows: list[Tokens], tokens: int) -> Iterator[list[Tokens]]:
    """Rows by falling length, cut so that rows * longest stays within `tokens`."""
    batch: list[Tokens] = []
    for row in sorted(rows, key=lambda r: (-len(r), r)):
        if batch and (len(batch) + 1) * len(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _left_padded(
    prompts: Sequence[Tokens], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, both [prompts, longest prompt]."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)

"""A checkpoint run the plain way: each row by itself, as transformers computes and continues it.

For every causal model that `shared_prefix_lm` can't run, and for texts that the checkpoint's
`generation_config.json` alters. Requests that share all their tokens (MMLU's four letters) still
share one row, and the vocabulary is computed at the needed positions only. Several rows lie in one
pass only where that is known to change nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from mixloop.evals.architectures import may_be_padded, rope_kinds

from .checkpoint_lm import CheckpointLM, Stopped, Tokens, keeps_logits
from .sampling import Sampling

log = logging.getLogger(__name__)


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
        self._padded = may_be_padded(model)
        self._cached = True
        # these grow with the longest row read so far and shrink at one that is short
        self._grows = "dynamic" in rope_kinds(model.config.get_text_config())

    @property
    def tokens(self) -> int:
        return self._tokens

    def score_sequences(
        self, sequences: Mapping[Tokens, Sequence[int]], tails: Sequence[list[int]]
    ) -> list[tuple[float, bool]]:
        scores: dict[int, tuple[float, bool]] = {}
        ordered = list(sequences)
        for batch in length_batches(ordered, self._batch_tokens, padded=self._padded):
            rows = [ordered[index] for index in batch]
            row_tails = [[tails[i] for i in sequences[row]] for row in rows]
            for row, row_scores in zip(rows, self._score(rows, row_tails), strict=True):
                scores.update(zip(sequences[row], row_scores, strict=True))
        return [scores.get(index, (0.0, True)) for index in range(len(tails))]

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
        self._start_afresh()
        options = {"logits_to_keep": tokens.shape[1] - first} if self._keeps_logits else {}
        compute = partial(self.model, input_ids=tokens, **options)
        # some families compute otherwise with a cache: as lm-eval's `hf` model, unless it is known
        # to make no difference
        out = compute(use_cache=False) if self._padded else self._with_cache(compute)
        return cast(torch.Tensor, out.logits if self._keeps_logits else out.logits[:, first:])

    def _with_cache(self, compute: Callable[..., Any], **stock: Any) -> Any:
        """What is computed with a model's own cache, or without where that fails."""
        if self._cached:
            try:
                return compute(**stock)
            except torch.OutOfMemoryError:
                raise
            # some hybrids have layers of one kind only, which transformers' caches don't expect
            except Exception as error:
                log.warning("computed without a cache: %s: %s", type(error).__name__, error)
                self._cached = False
        return compute(use_cache=False)

    def _start_afresh(self) -> None:
        """Lets no pass depend on those before it."""
        if self._grows:
            self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device))

    def continue_prompts(
        self, prompts: Sequence[Tokens], sampling: Sampling, max_new_tokens: int, stopped: Stopped
    ) -> list[list[int]]:
        generators = sampling.generators(prompts)
        continuations: list[list[int]] = [[] for _ in prompts]
        # a decoding step computes one token a row: rows are bounded by their cache alone
        room = 4 * self._batch_tokens
        # what is altered may look at padding too
        padded = self._padded and not self.altered
        for batch in length_batches(prompts, room, padded=padded, more=max_new_tokens):
            choose = partial(sampling.choose, generators=[generators[i] for i in batch])
            written = self._generate_rows(
                [prompts[i] for i in batch],
                None if sampling.temperature == 0.0 else _Chooser(choose),
                max_new_tokens,
                stopped,
            )
            for index, tokens in zip(batch, written, strict=True):
                self._tokens += len(prompts[index]) + len(tokens)
                continuations[index] = tokens
        return continuations

    def _generate_rows(
        self,
        prompts: Sequence[Tokens],
        chooser: _Chooser | None,
        max_new_tokens: int,
        stopped: Stopped,
    ) -> list[list[int]]:
        """What transformers' own `generate` writes behind one left-padded batch.

        It knows each model's cache, and what `generation_config.json` does to greedy texts.
        """
        tokens, mask = _left_padded(prompts, self.device)
        width = tokens.shape[1]

        def criterion(rows: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.tensor(
                [stopped(row) for row in rows[:, width:].tolist()], device=rows.device
            )

        generate = partial(
            self.model.generate,
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self.ends),
            pad_token_id=self.eot_token_id,
            tokenizer=self.tokenizer,
            num_return_sequences=1,
            return_dict_in_generate=False,
            stopping_criteria=[criterion],
            **({} if chooser is None else {"logits_processor": [chooser], "num_beams": 1}),
        )
        self._start_afresh()
        written = self._with_cache(generate, use_cache=True)
        return cast(list[list[int]], written[:, width:].tolist())


@dataclass(frozen=True)
class _Chooser:
    """Draws each row's next token from its own source of randomness: no other stays possible."""

    choose: Callable[[torch.Tensor], list[int]]

    def __call__(self, rows: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor(self.choose(scores), device=scores.device)[:, None]
        return torch.full_like(scores, -math.inf).scatter(1, chosen, 0.0)


def _tail_score(logits: torch.Tensor, end: int, tail: list[int]) -> tuple[float, bool]:
    """Sum of log-probabilities of `tail`, read at the len(tail) positions before `end`."""
    scores = torch.log_softmax(logits[end - len(tail) : end].float(), dim=-1)
    targets = torch.tensor(tail, device=scores.device)
    total = scores.gather(1, targets[:, None]).sum()
    return float(total), bool((scores.argmax(-1) == targets).all())


def length_batches(
    rows: Sequence[Tokens], tokens: int, *, padded: bool, more: int = 0
) -> Iterator[list[int]]:
    """Which rows to compute together, by falling length: rows * (longest + more) within `tokens`.

    Without padding each is computed alone: some models mix up the states of rows of one length too.
    """
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), rows[i])):
        full = bool(batch) and (len(batch) + 1) * (len(rows[batch[0]]) + more) > tokens
        if batch and (full or not padded):
            yield batch
            batch = []
        batch.append(index)
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

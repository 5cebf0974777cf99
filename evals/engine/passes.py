"""Forward passes over packed tokens, and the log-probabilities that are wanted of them.

All tokens of a pass lie in one row without padding, behind a prefix whose keys and values are
shared (see `attention`); the vocabulary is computed only where something is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from . import attention
from .attention import CausalRow, KeyValue, PaddedRows, Pass, padded_index, ranges
from .checkpoint_lm import keeps_logits
from .prefix_tree import Row


class LogprobCollector:
    """Log-probabilities collected from passes: per request, its tokens' and whether greedy."""

    def __init__(self, requests: int) -> None:
        self._logprobs: list[list[float]] = [[] for _ in range(requests)]
        self._greedy = [True] * requests
        self._requested: dict[int, list[tuple[int, int]]] = {}

    def request(self, request: int, slots: Sequence[int], tail: Sequence[int]) -> None:
        """Asks what `tail` gets when read after these slots."""
        for slot, target in zip(slots, tail, strict=True):
            self._requested.setdefault(slot, []).append((request, target))

    def requested_places(self, slots: Sequence[int]) -> list[int]:
        """Which tokens of a pass something is still wanted of, each slot once."""
        first: dict[int, int] = {}
        for place, slot in enumerate(slots):
            first.setdefault(slot, place)
        return [place for slot, place in first.items() if slot in self._requested]

    def add(self, slots: Sequence[int], logits: torch.Tensor) -> None:
        """Takes what a pass says after these slots; `logits` are [len(slots), vocabulary]."""
        logits = logits.float()
        requests, places, targets = zip(
            *(
                (request, place, target)
                for place, slot in enumerate(slots)
                for request, target in self._requested.pop(slot)
            ),
            strict=True,
        )
        at, wanted = (torch.tensor(ids, device=logits.device) for ids in (places, targets))
        scores = logits[at, wanted] - logits.logsumexp(-1)[at]
        greedy = logits.argmax(-1)[at] == wanted
        for request, score, best in zip(requests, scores.tolist(), greedy.tolist(), strict=True):
            self._logprobs[request].append(score)
            self._greedy[request] &= best

    def results(self) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, all greedy) by request."""
        # exactly rounded, so the sum does not depend on the order the tokens came in
        return list(zip(map(math.fsum, self._logprobs), self._greedy, strict=True))


class PackedModel:
    """A causal language model set up for packed passes.

    Args:
        model: A model of transformers; its attention is replaced.
        pass_tokens: The most tokens of a pass; one row of a tree may take more.
    """

    def __init__(self, model: Any, pass_tokens: int) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(attention.NAME, attention.attention)
        self._stock_attention = model.config._attn_implementation
        model.set_attn_implementation(attention.NAME)
        self.model = model
        self.pass_tokens = pass_tokens
        self.tokens = 0  # computed so far
        self._keeps_logits = keeps_logits(model)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return cast(torch.device, self.model.device)

    @contextmanager
    def as_stock(self) -> Iterator[None]:
        """Within this, the model is computed as transformers does."""
        self.model.set_attn_implementation(self._stock_attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(attention.NAME)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], step: Pass, wanted: Sequence[int]
    ) -> torch.Tensor:
        """Runs one pass; logits [len(wanted), vocabulary] of these of its tokens (at least one)."""
        self.tokens += len(tokens)
        keep = torch.tensor(wanted, device=self.device)
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        with attention.active(step):
            out = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                **options,
            )
        logits = cast(torch.Tensor, out.logits)[0]
        return logits if self._keeps_logits else logits[keep]

    def read_prompts(
        self, prompts: Sequence[Sequence[int]], prefix: Sequence[KeyValue] | None, depth: int
    ) -> tuple[torch.Tensor, list[KeyValue], list[tuple[int, int]]]:
        """Runs prompts behind a prefix of `depth` tokens.

        Returns:
            The logits [n, vocabulary] of what follows each, the pass's keys and values by layer,
            and where in them each prompt lies.
        """
        lengths = [len(prompt) for prompt in prompts]
        spans = ranges(lengths)
        step = Pass(self._rows(lengths), prefix, keep=True)
        tokens = [token for prompt in prompts for token in prompt]
        positions = [depth + i for length in lengths for i in range(length)]
        logits = self.forward(tokens, positions, step, [end - 1 for _, end in spans])
        return logits, step.kept, spans

    def prefill(
        self, row: Row, prefix: list[KeyValue] | None, logprobs: LogprobCollector | None
    ) -> list[KeyValue] | None:
        """Runs a chain behind a prefix, some tokens at a time; the prefix with it appended."""
        for begin in range(0, len(row.tokens), self.pass_tokens):
            part = slice(begin, begin + self.pass_tokens)
            step = Pass(CausalRow(), prefix, keep=True)
            self._collect(row.tokens[part], row.positions[part], row.slots[part], step, logprobs)
            prefix = _appended(prefix, step.kept)
        return prefix

    def read_rows(
        self, rows: Sequence[Row], prefix: list[KeyValue] | None, logprobs: LogprobCollector
    ) -> None:
        """Runs rows behind a prefix in one pass, in halves where memory does not hold them."""
        if len(rows[0].tokens) > self.pass_tokens and rows[0].is_chain:
            self.prefill(rows[0], prefix, logprobs)
            return
        try:
            attends = self._rows([len(row.tokens) for row in rows], rows)
            self._collect(
                [token for row in rows for token in row.tokens],
                [position for row in rows for position in row.positions],
                [slot for row in rows for slot in row.slots],
                Pass(attends, prefix),
                logprobs,
            )
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            # what has been answered is not asked again
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                self.read_rows(half, prefix, logprobs)

    def _collect(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        step: Pass,
        logprobs: LogprobCollector | None,
    ) -> None:
        """Runs a pass and hands over what is requested of it."""
        places = [] if logprobs is None else logprobs.requested_places(slots)
        logits = self.forward(tokens, positions, step, places or [len(tokens) - 1])
        if logprobs is not None and places:
            logprobs.add([slots[place] for place in places], logits)

    def _rows(self, lengths: Sequence[int], rows: Sequence[Row] = ()) -> CausalRow | PaddedRows:
        """How packed rows of these lengths attend: each to itself, trees along their branches."""
        trees = bool(rows) and not rows[0].is_chain
        if len(lengths) == 1 and not trees:
            return CausalRow()
        index, back = padded_index(lengths)
        mask = _tree_mask(rows, max(lengths)).to(self.device) if trees else None
        return PaddedRows(index.to(self.device), back.to(self.device), mask)


def _appended(prefix: list[KeyValue] | None, kept: list[KeyValue]) -> list[KeyValue]:
    if prefix is None:
        return kept
    return [
        (torch.cat((k, new_k), dim=2), torch.cat((v, new_v), dim=2))
        for (k, v), (new_k, new_v) in zip(prefix, kept, strict=True)
    ]


def _tree_mask(rows: Iterable[Row], width: int) -> torch.Tensor:
    """Additive [rows, 1, width, width]: a token sees its ancestors and itself."""
    masks = []
    for row in rows:
        visible = torch.eye(width, dtype=torch.bool)
        for place, parent in enumerate(row.parents):
            if parent >= 0:
                visible[place] |= visible[parent]
        masks.append(visible)
    stacked = torch.stack(masks)[:, None]
    return torch.zeros(stacked.shape).masked_fill(~stacked, -math.inf)

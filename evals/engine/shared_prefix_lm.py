"""The evaluation engine: a checkpoint as an lm-eval model that computes shared tokens once.

Requests are planned together (`prefix_tree`): a prefix that several share is computed once and its
keys and values kept while they run; what follows it is packed without padding (`passes`).
Generation (`generation`) reuses the prefix too. `why_not_shared` says which models can't run this
way; they are run by `plain_lm`, which shares less and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from mixloop.evals.architectures import why_not_prefixes

from .attention import KeyValue
from .checkpoint_lm import CheckpointLM, Stopped, Tokens
from .generation import Continuation, Decoder
from .passes import LogprobCollector, PackedModel
from .plain_lm import PlainLM
from .prefix_tree import (
    MIN_SHARED_TOKENS,
    PrefixFamily,
    batches,
    chain,
    plan_prefixes,
    prompt_families,
    shared_length,
)
from .sampling import Sampling

# tokens of a pass: enough to keep the matrix products busy, few enough to stay in the caches; on
# another device, of a model of 10^9 parameters: smaller ones need more tokens to keep it busy
CPU_PASS, DEVICE_PASS, MAX_DEVICE_PASS = 512, 8192, 32768
# what a pass costs whatever it holds: on a device, seconds a layer for the host to launch it (as on
# an H200, bench/RESULTS.md), while it could do so many operations a second (a guess, the same for
# every device so that scores don't depend on one), two of which a token takes for each parameter
LAUNCH_SECONDS, OPERATIONS = 1e-3, 2e14
# the most logits of one pass, in numbers
CPU_LOGITS, DEVICE_LOGITS = 2**26, 2**30
# bytes for the keys and values of the rows being decoded, and the most rows at a time
CPU_CACHE, DEVICE_CACHE, CPU_ROWS, DEVICE_ROWS = 2**30, 2**32, 32, 256


class SharedPrefixLM(CheckpointLM):
    """A causal language model for lm-eval's task code that computes shared tokens once.

    `packed.pass_tokens` bounds the tokens of one forward pass (`batch_tokens`; None: what suits
    device and model); a prefix that saves `min_shared_tokens` gets one of its own; `max_rows` are
    decoded at a time.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_tokens: int | None = None, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, **options)
        config = model.config.get_text_config()
        on_cpu = self.device.type == "cpu"
        size = max(1, sum(parameter.numel() for parameter in model.parameters()))
        layers = int(config.num_hidden_layers)
        pass_tokens = batch_tokens or (CPU_PASS if on_cpu else device_pass(size))
        logits = (CPU_LOGITS if on_cpu else DEVICE_LOGITS) // int(config.vocab_size)
        self.packed = PackedModel(model, max(1, min(pass_tokens, logits)))
        self.min_shared_tokens = MIN_SHARED_TOKENS if on_cpu else device_min_shared(size, layers)
        self.max_rows = CPU_ROWS if on_cpu else DEVICE_ROWS
        # the newest prefix: what is generated often follows what was just read
        self._newest: tuple[Tokens, list[KeyValue]] = (), []
        # for texts that are more than their likeliest tokens
        self._plain = PlainLM(model, tokenizer, batch_tokens=batch_tokens, **options)

    @property
    def tokens(self) -> int:
        return self.packed.tokens + self._plain.tokens

    def forget(self) -> None:
        """Drops the prefix kept from the last requests."""
        self._newest = (), []

    def as_stock(self) -> AbstractContextManager[None]:
        return self.packed.as_stock()

    def score_sequences(
        self, sequences: Mapping[Tokens, Sequence[int]], tails: Sequence[list[int]]
    ) -> list[tuple[float, bool]]:
        plan = plan_prefixes(list(sequences), self.min_shared_tokens)
        logprobs = LogprobCollector(len(tails))
        for sequence, indices in enumerate(sequences.values()):
            for index in indices:
                tail = tails[index]
                logprobs.request(index, plan.slots(sequence, len(tail)), tail)
        self._read_family(plan.family, (), None, logprobs)
        return logprobs.results()

    def _read_family(
        self,
        family: PrefixFamily,
        above: Tokens,
        prefix: list[KeyValue] | None,
        logprobs: LogprobCollector,
    ) -> None:
        prefix = self.packed.prefill(family.prefix, prefix, logprobs)
        shared = above + family.prefix.tokens
        if prefix is not None:
            self._newest = (shared, prefix)
        for batch in batches(family.rows, self.packed.pass_tokens):
            self.packed.read_rows(batch, prefix, logprobs)
        for child in family.families:
            self._read_family(child, shared, prefix, logprobs)

    def continue_prompts(
        self, prompts: Sequence[Tokens], sampling: Sampling, max_new_tokens: int, stopped: Stopped
    ) -> list[list[int]]:
        if self.altered:
            with self.packed.as_stock():
                return self._plain.continue_prompts(prompts, sampling, max_new_tokens, stopped)
        generators = sampling.generators(prompts)
        continuations: list[list[int]] = [[] for _ in prompts]
        for depth, members in prompt_families(prompts, self.min_shared_tokens):
            shared = prompts[members[0]][:depth]
            rows = [Continuation(prompts[index][depth:], generators[index]) for index in members]
            longest = max(len(row.suffix) for row in rows) + max_new_tokens
            Decoder(
                self.packed,
                self._shared_prefix(shared),
                shared,
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                max_rows=min(len(rows), self._rows_in_memory(longest)),
                stopped=stopped,
            ).run(rows)
            for index, row in zip(members, rows, strict=True):
                continuations[index] = row.tokens
        return continuations

    def _shared_prefix(self, tokens: Tokens) -> list[KeyValue] | None:
        """Keys and values of these tokens, from those kept as far as they agree."""
        kept_tokens, kept = self._newest
        same = shared_length(kept_tokens, tokens)
        prefix = [(k[:, :, :same], v[:, :, :same]) for k, v in kept] if same else None
        return self.packed.prefill(chain(tokens, same), prefix, None)

    def _rows_in_memory(self, longest: int) -> int:
        """Rows to decode at a time: what the memory for their keys and values allows."""
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        bytes_a_token = 2 * config.num_hidden_layers * kv_heads * size * self.model.dtype.itemsize
        memory = CPU_CACHE if self.device.type == "cpu" else DEVICE_CACHE
        if self.device.type == "cuda":  # something else may be at work there
            memory = min(memory, torch.cuda.mem_get_info(self.device)[0] // 4)
        return max(1, min(self.max_rows, memory // int(bytes_a_token * longest)))


HALF_PRECISION_TOLERANCE = 0.05
"""Share of the logits' standard deviation by which the two ways may differ on average in half
precision: rounding stays well below."""

_EXACT_TOLERANCE = 1e-3  # the same in float32


def why_not_shared(model: Any, max_length: int) -> str | None:
    """Why a model can't run on shared prefixes, or None.

    Family and configuration decide. A model that they let pass computes a short text both ways, so
    that a release of transformers that computes it otherwise is noticed.
    """
    obstacle = why_not_prefixes(model, max_length)
    if obstacle is not None:
        return obstacle
    stock_attention = model.config._attn_implementation
    try:
        difference = _compare(model, max_length)
    # a model that can't be run this way fails in whatever way its code fails
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        model.set_attn_implementation(stock_attention)
    exact = model.dtype == torch.float32
    if difference <= (_EXACT_TOLERANCE if exact else HALF_PRECISION_TOLERANCE):
        return None
    return f"its attention is of another kind (results differ by {difference:.2g} deviations)"


def _compare(model: Any, max_length: int) -> float:
    """How far a text computed in three parts is from the same text computed plainly."""
    model.eval()
    length = min(48, max_length)
    generator = torch.Generator().manual_seed(0)
    size = int(model.config.get_text_config().vocab_size)
    tokens = torch.randint(size, (length,), generator=generator).tolist()
    with torch.inference_mode():
        inputs = torch.tensor([tokens], device=model.device)
        plain = model(input_ids=inputs, use_cache=False).logits[0, -1].float()
        packed = PackedModel(model, pass_tokens=length)
        prefix = packed.prefill(chain(tuple(tokens[: length // 2])), None, None)
        rest = tokens[length // 2 :]
        # two rows of unlike lengths behind the prefix, so that padding is tried as well
        shared, _, _ = packed.read_prompts([rest, rest[:1]], prefix, length // 2)
    return float((shared[0].float() - plain).abs().mean() / plain.std().clamp(min=1e-6))


def device_pass(parameters: int) -> int:
    """Tokens of a pass on a device that is not the CPU."""
    return max(DEVICE_PASS, min(MAX_DEVICE_PASS, DEVICE_PASS * 10**9 // parameters))


def device_min_shared(parameters: int, layers: int) -> int:
    """Tokens that take a device as long as launching a pass does."""
    return max(MIN_SHARED_TOKENS, int(layers * LAUNCH_SECONDS * OPERATIONS / (2 * parameters)))

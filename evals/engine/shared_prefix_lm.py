"""The evaluation engine: a checkpoint as an lm-eval model that computes shared tokens once.

Requests are planned together (`trie`): a prefix that several share is computed once and its keys
and values kept while they run; what follows it is packed without padding; the vocabulary is
computed only where a log-probability is wanted. Generation (`decoding`) reuses the prefix too.
Tokens, splits and sums are those of lm-eval's `hf` model. `loading` finds out which models can
run this way; the others are run by `CheckpointLM`, which shares less and gives the same numbers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval.models.utils import normalize_gen_kwargs

from . import attention
from .attention import KeyValue, OneChain, Pass, Rows, padded_index
from .checkpoint_lm import CheckpointLM, Pair
from .generation import Decoder, Text
from .logprobs import LogprobCollector
from .prefix_tree import (
    WORTH_TOKENS,
    PrefixFamily,
    Row,
    batches,
    chain,
    plan_prefixes,
    prompt_families,
)
from .sampling import Sampling

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


# tokens of a pass: enough to keep the matrix products busy, few enough to stay in the caches; on
# another device, of a model of 10^9 parameters: smaller ones need more tokens to keep it busy
CPU_PASS, DEVICE_PASS, MOST_PASS = 512, 8192, 32768
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

    `pass_tokens` bounds the tokens of one forward pass; a prefix that saves `worth_tokens` gets one
    of its own. `tokens` counts those computed so far, `asked_tokens` those that computing every
    request on its own would have taken.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        seed: int = 1234,
    ) -> None:
        super().__init__(
            model, tokenizer, max_length=max_length, batch_tokens=batch_tokens, seed=seed
        )
        attention.register()
        model.set_attn_implementation(attention.NAME)
        on_cpu = self.device.type == "cpu"
        vocabulary = int(model.config.get_text_config().vocab_size)
        size = max(1, sum(one.numel() for one in model.parameters()))
        most = batch_tokens or (CPU_PASS if on_cpu else device_pass(size))
        layers = int(model.config.get_text_config().num_hidden_layers)
        self.worth_tokens = WORTH_TOKENS if on_cpu else device_worth(size, layers)
        self.pass_tokens = max(
            1, min(most, (CPU_LOGITS if on_cpu else DEVICE_LOGITS) // vocabulary)
        )
        self.most_rows = CPU_ROWS if on_cpu else DEVICE_ROWS
        # the newest prefix: what is generated often follows what was just read
        self._newest: tuple[tuple[int, ...], list[KeyValue]] | None = None

    # -- passes ------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], one: Pass, wanted: Sequence[int]
    ) -> torch.Tensor:
        """Runs one pass; logits [len(wanted), vocabulary] of these of its tokens (at least one)."""
        self.tokens += len(tokens)
        keep = torch.tensor(wanted, device=self.device)
        options = {"logits_to_keep": keep} if self._keeps else {}
        with attention.running(one):
            out = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                **options,
            )
        logits = cast(torch.Tensor, out.logits)[0]
        return logits if self._keeps else logits[keep]

    def read_prompts(
        self, prompts: Sequence[Sequence[int]], prefix: Sequence[KeyValue] | None, depth: int
    ) -> tuple[torch.Tensor, list[KeyValue], list[tuple[int, int]]]:
        """Runs prompts behind a prefix of `depth` tokens.

        Returns the logits [n, vocabulary] of what follows each, the pass's keys and values by
        layer, and where in them each prompt lies.
        """
        spans: list[tuple[int, int]] = []
        for prompt in prompts:
            begin = spans[-1][1] if spans else 0
            spans.append((begin, begin + len(prompt)))
        own = _rows([len(prompt) for prompt in prompts], None, self.device)
        one = Pass(own, prefix, keep=True)
        tokens = [token for prompt in prompts for token in prompt]
        positions = [depth + i for prompt in prompts for i in range(len(prompt))]
        logits = self.forward(tokens, positions, one, [end - 1 for _, end in spans])
        return logits, one.kept, spans

    def prefill(
        self, row: Row, prefix: list[KeyValue] | None, answers: LogprobCollector | None
    ) -> list[KeyValue] | None:
        """Runs a chain behind a prefix, some tokens at a time; the prefix with it appended."""
        for begin in range(0, len(row.tokens), self.pass_tokens):
            part = slice(begin, begin + self.pass_tokens)
            one = Pass(OneChain(), prefix, keep=True)
            self._scored(row.tokens[part], row.positions[part], row.slots[part], one, answers)
            prefix = _appended(prefix, one.kept)
        return prefix

    def _scored(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        one: Pass,
        answers: LogprobCollector | None,
    ) -> None:
        """Runs a pass and gives the answers what they want of it."""
        places = [] if answers is None else answers.wanted_places(slots)
        logits = self.forward(tokens, positions, one, places or [len(tokens) - 1])
        if answers is not None and places:
            answers.take([slots[place] for place in places], logits)

    # -- log-likelihoods ---------------------------------------------------------------------

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        asked: dict[tuple[int, ...], list[int]] = {}
        for index, (_text, head, tail) in enumerate(requests):
            self._must_hold(head, tail)
            asked.setdefault(tuple(head + tail[:-1]), []).append(index)
        if not asked:
            return []
        self.asked_tokens += sum(map(len, asked))
        made = plan_prefixes(list(asked), self.worth_tokens)
        answers = LogprobCollector(len(requests))
        for sequence, indices in enumerate(asked.values()):
            for index in indices:
                tail = requests[index][2]
                answers.want(index, made.slots(sequence, len(tail)), tail)
        self._family(made.family, (), None, answers)
        return answers.results()

    def forget(self) -> None:
        """Drops the prefix kept from the last requests."""
        self._newest = None

    def _family(
        self,
        family: PrefixFamily,
        above: tuple[int, ...],
        prefix: list[KeyValue] | None,
        answers: LogprobCollector,
    ) -> None:
        prefix = self.prefill(family.prefix, prefix, answers)
        shared = above + family.prefix.tokens
        if prefix is not None:
            self._newest = (shared, prefix)
        for batch in batches(family.rows, self.pass_tokens):
            self._batch(batch, prefix, answers)
        for child in family.families:
            self._family(child, shared, prefix, answers)

    def _batch(
        self, batch: Sequence[Row], prefix: list[KeyValue] | None, answers: LogprobCollector
    ) -> None:
        if len(batch[0].tokens) > self.pass_tokens and batch[0].is_chain:
            self.prefill(batch[0], prefix, answers)
            return
        try:
            lengths = [len(row.tokens) for row in batch]
            own = _rows(lengths, None if batch[0].is_chain else batch, self.device)
            self._scored(
                [token for row in batch for token in row.tokens],
                [position for row in batch for position in row.positions],
                [slot for row in batch for slot in row.slots],
                Pass(own, prefix),
                answers,
            )
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            # what has been answered is not asked again
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._batch(half, prefix, answers)

    # -- generation --------------------------------------------------------------------------

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations cut at their stop strings.

        Takes lm-eval's `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_p`, `top_k` and a
        `seed`. Raises ValueError for an argument that isn't offered, TooLongError when a prompt
        and its room exceed the context.
        """
        texts: list[str] = [""] * len(requests)
        grouped: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            grouped.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        for indices in grouped.values():
            # nothing to continue: from the start of a text, as for log-likelihoods
            prompts = [
                tuple(self.tok_encode(requests[i].args[0])) or (self.prefix_token_id,)
                for i in indices
            ]
            for i, text in zip(
                indices, self._generate(prompts, requests[indices[0]].args[1]), strict=True
            ):
                texts[i] = text
        return texts

    def _generate(self, prompts: list[tuple[int, ...]], asked: dict[str, Any]) -> list[str]:
        options = normalize_gen_kwargs(asked, self.max_gen_toks)
        sampling = Sampling.of(options, self.seed)
        room = int(options["max_gen_toks"])
        self._must_have_room(max(map(len, prompts)), room)
        stops = self._stops(options["until"])
        repeats: Counter[tuple[int, ...]] = Counter()
        texts: list[Text] = []
        for prompt in prompts:
            texts.append(Text(prompt, sampling.generator(prompt, repeats[prompt])))
            repeats[prompt] += 1
        for depth, members in prompt_families(prompts, self.worth_tokens):
            prefix = self._shared_prefix(prompts[members[0]][:depth])
            for index in members:
                texts[index].suffix = prompts[index][depth:]
            own = [texts[index] for index in members]
            longest = max(len(text.suffix) for text in own) + room
            Decoder(
                self,
                prefix,
                prompts[members[0]][:depth],
                sampling=sampling,
                room=room,
                places=min(len(own), self._places(longest)),
                stopped=lambda made: self._stopped(made, stops),
            ).run(own)
        self.asked_tokens += sum(len(p) + len(t.made) for p, t in zip(prompts, texts, strict=True))
        return [self._text(text.made, stops) for text in texts]

    def _shared_prefix(self, tokens: tuple[int, ...]) -> list[KeyValue] | None:
        """Keys and values of these tokens, from those kept as far as they agree."""
        known, kept = self._newest or ((), [])
        same = next(
            (i for i, (a, b) in enumerate(zip(known, tokens, strict=False)) if a != b),
            min(len(known), len(tokens)),
        )
        have = [(k[:, :, :same], v[:, :, :same]) for k, v in kept] if same else None
        return self.prefill(chain(tokens, same), have, None)

    def _places(self, longest: int) -> int:
        """Rows to decode at a time: what the memory for their keys and values allows."""
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        bytes_a_token = 2 * config.num_hidden_layers * kv_heads * size * self.model.dtype.itemsize
        most = CPU_CACHE if self.device.type == "cpu" else DEVICE_CACHE
        if self.device.type == "cuda":  # something else may be at work there
            most = min(most, torch.cuda.mem_get_info(self.device)[0] // 4)
        return max(1, min(self.most_rows, most // int(bytes_a_token * longest)))


def device_pass(parameters: int) -> int:
    """Tokens of a pass on a device that is not the CPU."""
    return max(DEVICE_PASS, min(MOST_PASS, DEVICE_PASS * 10**9 // parameters))


def device_worth(parameters: int, layers: int) -> int:
    """Tokens that take a device as long as launching a pass does."""
    return max(WORTH_TOKENS, int(layers * LAUNCH_SECONDS * OPERATIONS / (2 * parameters)))


def _appended(prefix: list[KeyValue] | None, kept: list[KeyValue]) -> list[KeyValue]:
    if prefix is None:
        return kept
    return [
        (torch.cat((k, new_k), dim=2), torch.cat((v, new_v), dim=2))
        for (k, v), (new_k, new_v) in zip(prefix, kept, strict=True)
    ]


def _rows(lengths: Sequence[int], trees: Sequence[Row] | None, device: torch.device) -> Any:
    """How packed rows of these lengths attend: each to itself, trees along their branches."""
    if trees is None and len(lengths) == 1:
        return OneChain()
    index, back = padded_index(lengths)
    mask = None if trees is None else _tree_mask(trees, max(lengths)).to(device)
    return Rows(index.to(device), back.to(device), mask)


def _tree_mask(rows: Iterable[Row], width: int) -> torch.Tensor:
    """Additive [rows, 1, width, width]: a token sees its ancestors and itself."""
    masks = []
    for row in rows:
        seen = torch.eye(width, dtype=torch.bool)
        for place, parent in enumerate(row.parents):
            if parent >= 0:
                seen[place] |= seen[parent]
        masks.append(seen)
    stacked = torch.stack(masks)[:, None]
    return torch.zeros(stacked.shape).masked_fill(~stacked, -math.inf)

"""A checkpoint as an lm-eval model: log-likelihoods and generated text, nothing ever truncated.

Tokens, splits and sums are those of lm-eval's `hf` model, so scores agree with it, but for two
things it gets wrong: tokens are decoded behind their prompt, and none that spans a context's end is
lost. Here requests become token sequences and tokens become texts; how the model is computed is a
subclass's part:
`shared_prefix_lm` computes shared tokens once, `plain_lm` runs any causal model.
"""

from __future__ import annotations

import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from mixloop.common.tokenizing import without_surrogates
from mixloop.evals.checkpoints import Encode, own_encoder

from .sampling import Sampling, altered_generation
from .tokenization import StopRule, ends_of_text

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Tokens = tuple[int, ...]
Pair = tuple[tuple[str, str], list[int], list[int]]
Stopped = Callable[[Sequence[int]], bool]


class TooLongError(Exception):
    """A request longer than the model's context: the caller was to exclude it."""


class CheckpointLM(TemplateLM):  # type: ignore[misc]  # lm_eval publishes no types
    """A causal language model for lm-eval's task code.

    `tokens` counts those computed so far, `asked_tokens` those that computing every request on its
    own would have taken. `ends` are the ids that end a text; `altered` names what the checkpoint's
    `generation_config.json` has that makes greedy texts others than the likeliest tokens.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        encode: What makes a text's ids; None: the tokenizer.
        max_length: The longest sequence, in tokens.
        seed: Of the texts that are drawn.
        add_bos: Whether the beginning-of-text token stands in front of every text.
    """

    max_gen_toks = 256  # lm-eval's own bound where a request names none

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        encode: Encode | None = None,
        max_length: int,
        seed: int = 1234,
        add_bos: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.encode = encode or own_encoder(tokenizer)
        self.max_length = max_length
        self.seed = seed
        self.add_bos = add_bos
        self.asked_tokens = 0
        self.ends = ends_of_text(model, tokenizer)
        self.altered = altered_generation(model)

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens computed so far."""

    @abstractmethod
    def score_sequences(
        self, sequences: Mapping[Tokens, Sequence[int]], tails: Sequence[list[int]]
    ) -> list[tuple[float, bool]]:
        """Sum of log-probabilities and greediness of every tail.

        Args:
            sequences: What a model reads, with the indices of the tails it ends with: the last
                len(tail) of its positions predict that tail.
            tails: Continuations, one per request; an empty one belongs to no sequence and is
                certain.
        """

    @abstractmethod
    def continue_prompts(
        self, prompts: Sequence[Tokens], sampling: Sampling, max_new_tokens: int, stopped: Stopped
    ) -> list[list[int]]:
        """The tokens that follow each prompt.

        Args:
            prompts: At least one token each; they hold `max_new_tokens` more.
            sampling: How tokens are chosen.
            max_new_tokens: The most that follow.
            stopped: Says of the tokens so far whether they are the last.
        """

    def forget(self) -> None:
        """Drops what was kept between requests, if anything."""

    def as_stock(self) -> AbstractContextManager[None]:
        """Within this, `model` is computed as transformers does, gradients included."""
        return nullcontext()

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return cast(torch.device, self.model.device)

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of an empty context: the end of the text before it.

        With `add_bos` it is the beginning of text, as lm-eval's `hf` model always has it.
        """
        return cast(int, self.tokenizer.bos_token_id) if self.add_bos else self.eot_token_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """A text's own token ids, behind the beginning-of-text token where that is asked for.

        It is never there twice, as in lm-eval's `hf` model with `add_bos_token`.
        """
        ids = self.encode(without_surrogates(string)[0])
        begin = self.add_bos and add_special_tokens is not False
        return [self.prefix_token_id, *ids] if begin and ids[:1] != [self.prefix_token_id] else ids

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood and greediness of each (context, continuation)."""
        return self._loglikelihood_tokens(
            [(request.args, *self.encode_pair(*request.args)) for request in requests]
        )

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens that are read before, at least one, and those that are predicted.

        Spaces that end a context belong to its continuation, as in lm-eval. A token that spans
        the two is predicted, so that no byte of a continuation is left out.
        """
        spaces = len(context) - len(context.rstrip())
        continuation = context[len(context) - spaces :] + continuation
        context = context[: len(context) - spaces]
        if context:
            head, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        else:
            head, whole = [], self.tok_encode(continuation, add_special_tokens=False)
        spanned = whole[: len(head)] != head
        split = self._first_beyond(context, head, whole) if spanned else len(head)
        begin = self.prefix_token_id
        if split == 0 and whole[:1] != [begin]:
            return [begin], whole
        split = max(split, 1)
        return whole[:split], whole[split:]

    def _first_beyond(self, context: str, head: list[int], whole: list[int]) -> int:
        """Of a whole text's tokens the first whose text reaches beyond the context's."""
        pairs = enumerate(zip(head, whole, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(head), len(whole)))
        # those that follow may lie within the context, only cut otherwise
        while first < len(whole) and context.startswith(
            self.tokenizer.decode(whole[: first + 1], skip_special_tokens=True)
        ):
            first += 1
        return first

    def holds(self, context: str, continuation: str) -> bool:
        """Whether the context holds all of both (the last token is predicted, never read)."""
        head, tail = self.encode_pair(context, continuation)
        return bool(tail) and len(head) + len(tail) - 1 <= self.max_length

    def has_room(self, prompt: str, tokens: int) -> bool:
        """Whether `tokens` more fit behind the whole prompt."""
        return len(self.tok_encode(prompt)) + tokens <= self.max_length

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, in lm-eval's disjoint windows of `max_length` tokens."""
        from lm_eval import utils

        windows: list[list[Pair]] = [
            [
                (("", ""), *utils.make_disjoint_window(window))
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scores = iter(self._loglikelihood_tokens([pair for text in windows for pair in text]))
        return [math.fsum(next(scores)[0] for _ in text) for text in windows]

    def score_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Log-likelihood of each pair of :meth:`encode_pair`."""
        return [
            total for total, _ in self._loglikelihood_tokens([(("", ""), *pair) for pair in pairs])
        ]

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        sequences: dict[Tokens, list[int]] = {}
        for index, (_text, head, tail) in enumerate(requests):
            if len(head) + len(tail) - 1 > self.max_length:
                raise TooLongError(
                    f"a request of {len(head)} + {len(tail)} tokens does not fit "
                    f"max_length {self.max_length}"
                )
            # nothing said is certain
            if tail:
                sequences.setdefault(tuple(head + tail[:-1]), []).append(index)
        if not sequences:
            return [(0.0, True)] * len(requests)
        self.asked_tokens += sum(map(len, sequences))
        return self.score_sequences(sequences, [tail for _, _, tail in requests])

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations cut at their stop strings.

        Takes lm-eval's `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_p`, `top_k` and a
        `seed`.

        Raises:
            ValueError: an argument that isn't offered.
            TooLongError: a prompt and its new tokens exceed the context.
        """
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        for indices in alike.values():
            # nothing to continue: from the start of a text, as for log-likelihoods
            prompts = [
                tuple(self.tok_encode(requests[i].args[0])) or (self.prefix_token_id,)
                for i in indices
            ]
            generated = self._generate(prompts, requests[indices[0]].args[1])
            for index, text in zip(indices, generated, strict=True):
                texts[index] = text
        return texts

    def _generate(self, prompts: Sequence[Tokens], arguments: dict[str, Any]) -> list[str]:
        options = normalize_gen_kwargs(arguments, self.max_gen_toks)
        sampling = Sampling.of(options, self.seed)
        longest, max_new_tokens = max(map(len, prompts)), int(options["max_gen_toks"])
        if longest + max_new_tokens > self.max_length:
            raise TooLongError(
                f"{longest} + {max_new_tokens} tokens do not fit max_length {self.max_length}"
            )
        rule = StopRule(self.tokenizer, self.ends, options["until"])
        continuations = self.continue_prompts(prompts, sampling, max_new_tokens, rule.reached)
        self.asked_tokens += sum(map(len, prompts)) + sum(map(len, continuations))
        return [rule.text(*pair) for pair in zip(prompts, continuations, strict=True)]


def keeps_logits(model: Any) -> bool:
    """Whether a model can be told at which positions logits are wanted."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters

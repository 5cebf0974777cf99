"""A checkpoint as an lm-eval model: log-likelihoods and greedy text, nothing ever truncated.

Tokens, splits and sums are those of lm-eval's `hf` model, so scores agree with it; requests that
share their tokens (MMLU's four letters) share one pass, rows are batched by length, and the
vocabulary is computed at the needed positions only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from .sampling import Sampling

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


Pair = tuple[tuple[str, str], list[int], list[int]]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointError(Exception):
    """The checkpoint can't be loaded: one line naming the folder and the reason."""


class TooLongError(Exception):
    """A request longer than the model's context: the caller was to exclude it."""


class CheckpointLM(TemplateLM):  # type: ignore[misc]  # lm_eval publishes no types
    """A causal language model for lm-eval's task code.

    `max_length` is in tokens, `batch_tokens` bounds rows * longest row of one forward pass.
    """

    max_gen_toks = 256  # lm-eval's own bound where a request names none

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        batch_tokens: int | None = None,
        seed: int = 1234,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_tokens = batch_tokens or 2048
        self.seed = seed
        self.tokens = self.asked_tokens = 0
        names = _parameters(model)
        self._keeps = "logits_to_keep" in names
        # transformers renamed it in 5.x and warns at the old name
        self._cache = "cache" if "cache" in names else "past_key_values"

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
        """What stands in front of an empty context, as lm-eval's `hf` model has it."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else cast(int, begin)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them, a leading BOS never twice."""
        if add_special_tokens is None and self._starts_with_bos(string):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return cast(list[int], self.tokenizer.encode(string, **options))

    def _starts_with_bos(self, string: str) -> bool:
        prefix = self.tokenizer.decode(self.prefix_token_id)
        return bool(prefix) and string.startswith(prefix)

    def holds(self, context: str, continuation: str) -> bool:
        """Whether the context holds all of both (the last token is predicted, never read)."""
        head, tail = self._encode_pair(context, continuation)
        return bool(tail) and len(head) + len(tail) - 1 <= self.max_length

    def has_room(self, prompt: str, tokens: int) -> bool:
        """Whether `tokens` more fit behind the whole prompt."""
        return len(self.tok_encode(prompt)) + tokens <= self.max_length

    def forget(self) -> None:
        """Drops what was kept between requests, if anything."""

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihoods of whole texts, in lm-eval's disjoint windows of `max_length` tokens."""
        from lm_eval import utils

        windows: list[Pair] = []
        counts: list[int] = []
        for request in requests:
            rolled = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(("", ""), *utils.make_disjoint_window(window)) for window in rolled]
            windows += own
            counts.append(len(own))
        found = iter(self._loglikelihood_tokens(windows))
        return [math.fsum(next(found)[0] for _ in range(count)) for count in counts]

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        shared: dict[tuple[int, ...], list[int]] = {}
        for index, (_text, head, tail) in enumerate(requests):
            self._must_hold(head, tail)
            shared.setdefault(tuple(head + tail[:-1]), []).append(index)
        self.asked_tokens += sum(map(len, shared))
        answers: dict[int, tuple[float, bool]] = {}
        for rows in _batches(list(shared), self.batch_tokens):
            tails = [[requests[i][2] for i in shared[row]] for row in rows]
            for row, scored in zip(rows, self._score(rows, tails), strict=True):
                answers.update(zip(shared[row], scored, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _must_hold(self, head: Sequence[int], tail: Sequence[int]) -> None:
        if not head or not tail or len(head) + len(tail) - 1 > self.max_length:
            raise TooLongError(
                f"a request of {len(head)} + {len(tail)} tokens does not fit "
                f"max_length {self.max_length}"
            )

    def _must_have_room(self, longest: int, room: int) -> None:
        if longest + room > self.max_length:
            raise TooLongError(f"{longest} + {room} tokens do not fit max_length {self.max_length}")

    def _stops(self, until: Sequence[str]) -> list[str]:
        """The stop strings, end of text among them."""
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        return [*until, end] if end and end not in until else list(until)

    def _score(
        self, rows: Sequence[tuple[int, ...]], tails: Sequence[Sequence[list[int]]]
    ) -> list[list[tuple[float, bool]]]:
        """Log-probability and greediness of each row's continuations; one forward pass.

        rows: [n] token tuples without the last continuation token; right padding needs no mask
        under causal attention.
        """
        width = max(len(row) for row in rows)
        self.tokens += sum(len(row) for row in rows)
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        first = min(
            len(row) - max(len(tail) for tail in own) for row, own in zip(rows, tails, strict=True)
        )
        logits = self._logits(tokens.to(self.device), first)
        return [
            [_tail_score(logits[index], len(row) - first, tail) for tail in own]
            for index, (row, own) in enumerate(zip(rows, tails, strict=True))
        ]

    def _logits(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """Logits [n, width - first, vocabulary] from position `first` on."""
        if not self._keeps:
            return cast(torch.Tensor, self.model(input_ids=tokens, use_cache=False).logits)[
                :, first:
            ]
        kept = tokens.shape[1] - first
        out = self.model(input_ids=tokens, use_cache=False, logits_to_keep=kept)
        return cast(torch.Tensor, out.logits)

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations cut at their stop strings.

        Takes lm-eval's `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_p`, `top_k` and a
        `seed`. Raises ValueError for an argument that isn't offered, TooLongError when a prompt
        and its room exceed the context.
        """
        texts: list[str | None] = [None] * len(requests)
        grouped: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            grouped.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        for indices in grouped.values():
            options = requests[indices[0]].args[1]
            prompts = {i: self.tok_encode(requests[i].args[0]) for i in indices}
            self._generate_group(prompts, options, texts)
        return cast(list[str], texts)

    def _generate_group(
        self, prompts: dict[int, list[int]], asked: dict[str, Any], texts: list[str | None]
    ) -> None:
        options = normalize_gen_kwargs(asked, self.max_gen_toks)
        sampling = Sampling.of(options, self.seed)
        room, stops = int(options["max_gen_toks"]), self._stops(options["until"])
        longest = max(len(prompt) for prompt in prompts.values())
        self._must_have_room(longest, room)
        ordered = sorted(prompts, key=lambda i: (-len(prompts[i]), i))
        generators = _generators(prompts, sampling)
        # a decoding step computes one token a row: rows are bounded by their cache alone
        step = max(1, 4 * self.batch_tokens // (longest + room))
        for begin in range(0, len(ordered), step):
            batch = ordered[begin : begin + step]
            draw = _Draw(sampling, [generators[i] for i in batch])
            made = self._decode([prompts[i] for i in batch], room, stops, draw)
            for index, ids in zip(batch, made, strict=True):
                self.asked_tokens += len(prompts[index]) + len(ids)
                self.tokens += len(prompts[index]) + len(ids)
                texts[index] = self._text(ids, stops)

    def _decode(
        self, prompts: list[list[int]], room: int, stops: list[str], draw: _Draw
    ) -> list[list[int]]:
        """Decoding of one left-padded batch; rows that stopped ride along unread."""
        tokens, mask = _left_padded(prompts, self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        made: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        cache: Any = None
        for _ in range(room):
            options = {"logits_to_keep": 1} if self._keeps else {}
            out = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self._cache: cache},
                **options,
            )
            cache = getattr(out, self._cache)
            chosen = draw.sampling.choose(out.logits[:, -1], draw.generators)
            for row, token in enumerate(chosen):
                if row in open_rows:
                    made[row].append(token)
                    if self._stopped(made[row], stops):
                        open_rows.discard(row)
            if not open_rows:
                break
            tokens = torch.tensor(chosen, device=self.device)[:, None]
            mask = torch.cat([mask, mask.new_ones((len(prompts), 1))], dim=1)
            positions = positions[:, -1:] + 1
        return made

    def _stopped(self, made: list[int], stops: list[str]) -> bool:
        if made[-1] == self.eot_token_id:
            return True
        # a stop string of k characters lies within its last k bytes, so within 4k tokens
        span = 4 * max((len(stop) for stop in stops), default=1) + 1
        tail = self.tokenizer.decode(made[-span:], skip_special_tokens=False)
        return any(stop in tail for stop in stops)

    def _text(self, made: list[int], stops: list[str]) -> str:
        # what follows the end of text is noise of a row that rode along in its batch
        ids = made[: made.index(self.eot_token_id)] if self.eot_token_id in made else made
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return cast(str, postprocess_generated_text(text, stop=stops, think_end_token=None))


@dataclass(frozen=True)
class _Draw:
    """How the rows of a batch choose their tokens."""

    sampling: Sampling
    generators: list[torch.Generator]


def _generators(prompts: dict[int, list[int]], sampling: Sampling) -> dict[int, torch.Generator]:
    """Each request's source of randomness; a prompt asked again gets another."""
    repeats: Counter[tuple[int, ...]] = Counter()
    found = {}
    for index, prompt in prompts.items():
        found[index] = sampling.generator(prompt, repeats[tuple(prompt)])
        repeats[tuple(prompt)] += 1
    return found


def _tail_score(logits: torch.Tensor, end: int, tail: list[int]) -> tuple[float, bool]:
    """Sum of log-probabilities of `tail`, read at the len(tail) positions before `end`."""
    scores = torch.log_softmax(logits[end - len(tail) : end].float(), dim=-1)
    wanted = torch.tensor(tail, device=scores.device)
    total = scores.gather(1, wanted[:, None]).sum()
    return float(total), bool((scores.argmax(-1) == wanted).all())


def _batches(rows: list[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows by falling length, cut so that rows * longest stays within `tokens`."""
    batch: list[tuple[int, ...]] = []
    for row in sorted(rows, key=lambda r: (-len(r), r)):
        if batch and (len(batch) + 1) * len(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _left_padded(
    prompts: Sequence[list[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _parameters(model: Any) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: model, tokenizer and its context in tokens."""

    model: Any
    tokenizer: Any
    max_length: int


def read_checkpoint(
    folder: Path, *, device: str = "cpu", dtype: str = "auto", max_length: int | None = None
) -> Checkpoint:
    """Reads a Hugging Face checkpoint folder: safetensors only, no code from the checkpoint.

    `dtype` auto is float32 on a CPU and the checkpoint's own elsewhere. Raises CheckpointError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    own = torch.float32 if torch.device(device).type == "cpu" else "auto"
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=_DTYPES.get(dtype, own), **options
        ).to(device)
    # a folder that vanishes or is damaged fails in whatever way the parser at hand fails
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{folder}: can't be loaded: {reason}") from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{folder}: its tokenizer has no end-of-text token")
    return Checkpoint(model, tokenizer, max_length or _context(config))


def _context(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    raise CheckpointError("the model's config names no context length: set evals.max_length")


def tokenizer_fingerprint(lm: CheckpointLM) -> str:
    """Identity of what decides prompt lengths: the tokenizer and the context."""
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    text = (
        backend.to_str() if backend is not None else repr(sorted(lm.tokenizer.get_vocab().items()))
    )
    return hashlib.sha256(f"{lm.max_length}|{text}".encode()).hexdigest()


def tokenizer_identity(tokenizer: Any, folder: Path) -> str:
    """Equal for tokenizers of two checkpoints' folders that read and write alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # a slow tokenizer says too little of itself: each is its own
    text = backend.to_str() if backend is not None else str(id(tokenizer))
    own = (tokenizer.special_tokens_map, sorted(tokenizer.init_kwargs.items()))
    named = repr((type(tokenizer), own)).replace(str(folder), "")
    return hashlib.sha256(f"{named}|{text}".encode()).hexdigest()

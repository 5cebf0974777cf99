"""The next token: greedy, or drawn with temperature, top-k and top-p, reproducibly.

Every row draws from a generator of its own, seeded by the request alone, so what is drawn does
not depend on which rows happen to be decoded together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# what lm-eval's tasks and Hugging Face's `generate` may say that changes nothing here
_IGNORED = {"until", "max_gen_toks", "use_cache", "num_beams", "do_sample", "pad_token_id"}
_KNOWN = {"temperature", "top_p", "top_k", "seed"}

# what `generation_config.json` may say that makes greedy texts others than the likeliest tokens,
# and the values with which it does not; the rest is about drawing, lengths, caches and outputs
_ALTERING: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "repetition_penalty": (1.0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "token_healing": (False,),
    "watermarking_config": (),
}


def altered_generation(model: Any) -> list[str]:
    """What a checkpoint's `generation_config.json` has that alters its greedy texts, by name."""
    config = model.generation_config
    settings = {name: getattr(config, name, None) for name in _ALTERING}
    return [name for name, value in settings.items() if value not in (None, *_ALTERING[name])]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; a temperature of 0 is greedy. `top_k` 0 and `top_p` 1 are off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 1234

    @classmethod
    def of(cls, options: Mapping[str, Any], seed: int) -> Sampling:
        """From normalised generation arguments.

        Raises:
            ValueError: an argument that would change the text in a way not offered here.
        """
        beams = int(options.get("num_beams", 1))
        unknown = sorted(key for key in options if key not in _IGNORED | _KNOWN)
        if beams != 1 or unknown:
            named = unknown[0] if unknown else f"num_beams={beams}"
            raise ValueError(f"generation argument {named} is not offered: use lm-eval's hf model")
        if not options.get("do_sample"):
            return cls()
        return cls(
            float(options.get("temperature", 1.0)),
            float(options.get("top_p", 1.0)),
            int(options.get("top_k", 0)),
            int(options.get("seed", seed)),
        )

    def generators(self, prompts: Sequence[tuple[int, ...]]) -> list[torch.Generator]:
        """Each prompt's source of randomness; a prompt asked again gets another."""
        repeats: Counter[tuple[int, ...]] = Counter()
        generators = []
        for prompt in prompts:
            text = f"{self.seed}|{repeats[prompt]}|{','.join(map(str, prompt))}"
            number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
            generators.append(torch.Generator().manual_seed(number))
            repeats[prompt] += 1
        return generators

    def choose(self, logits: torch.Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """A token a row; `logits` are [n, vocabulary]."""
        if self.temperature == 0.0:
            return logits.argmax(-1).tolist()
        # on the CPU, whose generators give the same numbers everywhere
        shares = torch.softmax(logits.float().cpu() / self.temperature, dim=-1)
        return [
            self._draw(row, generator) for row, generator in zip(shares, generators, strict=True)
        ]

    def _draw(self, shares: torch.Tensor, generator: torch.Generator) -> int:
        ordered, tokens = shares.sort(descending=True, stable=True)
        # the smallest set whose mass reaches top_p: a token stays if the mass before it is less
        dropped = ordered.cumsum(0) - ordered >= self.top_p
        if self.top_k:
            dropped[self.top_k :] = True
        kept = shares.clone()
        kept[tokens[dropped]] = 0.0
        # an exponential race, noise by token: near ties that change places change nothing
        noise = torch.empty_like(kept).exponential_(generator=generator)
        return int((kept / noise).argmax())

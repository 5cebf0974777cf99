"""What a checkpoint writes: fixed prompts per domain, continued greedily and at random.

For a person to read beside the scorecard; nothing is decided on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from mixloop.common.errors import one_line
from mixloop.common.files import LARGEST_JSON, read_whole, write_atomic
from mixloop.evals import EvalSettings, FrozenModel, Scorecard

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM

SCHEMA: Final = "mixloop/samples/1"

PROMPTS: dict[str, tuple[str, ...]] = {
    "web": (
        "The ferry left the harbour an hour late, and nobody on deck",
        "How to repair a bicycle tyre at home: first,",
        "Last week the town council voted to close the old library. Residents",
    ),
    "knowledge": (
        "The largest planet of the solar system is",
        "Plants take in carbon dioxide and, with the energy of sunlight, make",
        "The French Revolution began in the year",
    ),
    "maths": (
        "Question: A box holds 6 eggs. How many eggs are in 7 boxes?\nAnswer:",
        "To solve 3x + 5 = 20, subtract 5 from both sides:",
        "The sum of the angles of a triangle is",
    ),
    "code": (
        'def is_even(number):\n    """True if the number is even."""\n',
        "# prints the numbers from 1 to 10\nfor",
        'import json\n\ndef read_settings(path):\n    """Reads a JSON file."""\n',
    ),
}

TEMPERATURE, TOP_P, SEED = 0.8, 0.95, 17


class Sample(FrozenModel):
    """One prompt and its two continuations; None where the model offers none (see `reason`)."""

    domain: str
    prompt: str
    greedy: str | None
    sampled: str | None
    temperature: float
    top_p: float
    seed: int
    reason: str | None = None


class Samples(FrozenModel):
    """All samples of one checkpoint. Prompts that don't fit its context are left out."""

    schema_: Literal["mixloop/samples/1"] = Field(default=SCHEMA, alias="schema")
    checkpoint: str
    step: int | None = None
    tokens: int | None = None
    max_new_tokens: int
    samples: tuple[Sample, ...]

    @classmethod
    def read(cls, path: Path) -> Samples:
        """Reads a samples file.

        Raises:
            OSError: it is missing or can't be read.
            ValueError: it holds no samples; names the file.
        """
        try:
            return cls.model_validate_json(read_whole(path, LARGEST_JSON))
        except ValueError as error:
            raise ValueError(f"{path}: not a samples file: {error}") from error


def samples_path(scorecard: Path) -> Path:
    """`card.samples.json` beside `card.json`."""
    return scorecard.with_name(f"{scorecard.stem}.samples.json")


def write_samples(
    lm: CheckpointLM, card: Scorecard, scorecard: Path, settings: EvalSettings
) -> Path | None:
    """Writes the samples of a scored checkpoint beside its scorecard; None where they are off.

    Raises:
        OSError: the disk did not take them; the file is whole or not there at all.
    """
    if not settings.samples:
        return None
    path = samples_path(scorecard)
    samples = Samples(
        schema=SCHEMA,
        checkpoint=card.checkpoint,
        step=card.step,
        tokens=card.tokens,
        max_new_tokens=settings.samples_tokens,
        samples=_take_samples(lm, settings.samples_tokens),
    )
    text = json.dumps(samples.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a byte-level tokenizer may leave half a character, which is no UTF-8
    write_atomic(path, f"{text}\n".encode(errors="replace"))
    return path


def _take_samples(lm: CheckpointLM, max_new_tokens: int) -> tuple[Sample, ...]:
    """Continuations of every prompt that fits, the same at every call."""
    asked = [
        (domain, prompt)
        for domain, prompts in PROMPTS.items()
        for prompt in prompts
        if lm.has_room(prompt, max_new_tokens)
    ]
    prompts = [prompt for _, prompt in asked]
    options = {"temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED}
    greedy, reason = _continue(lm, prompts, {"do_sample": False}, max_new_tokens)
    sampled, other = _continue(lm, prompts, {"do_sample": True, **options}, max_new_tokens)
    return tuple(
        Sample(
            domain=domain,
            prompt=prompt,
            greedy=first,
            sampled=second,
            **options,
            reason=reason or other,
        )
        for (domain, prompt), first, second in zip(asked, greedy, sampled, strict=True)
    )


def _continue(
    lm: CheckpointLM, prompts: list[str], options: dict[str, Any], max_new_tokens: int
) -> tuple[list[str] | list[None], str | None]:
    """A text per prompt, or why there are none."""
    from lm_eval.api.instance import Instance

    options = {"until": [], "max_gen_toks": max_new_tokens, **options}
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, options), idx=0)
        for prompt in prompts
    ]
    try:
        return lm.generate_until(requests), None
    # whatever a model raises costs these texts, never the scorecard beside them
    except Exception as error:
        return [None] * len(prompts), one_line(error)

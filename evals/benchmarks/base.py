"""What every benchmark has in common: what it asks of a model, and how the answers are scored.

A benchmark turns items into `Question`s at a number of shots (stock prompts through lm-eval's
task code) and model answers into per-item outcomes. It knows nothing of contexts or subsets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixloop.common.tokenizing import without_surrogates
from mixloop.evals import Outcomes

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


@dataclass(frozen=True)
class Question:
    """One item as put to a model.

    `gold` is (context, continuation) whose continuation's bits are measured over `gold_bytes`,
    the UTF-8 length of the answer itself (without the space lm-eval puts in front of it); None
    where the task has no gold text. `choices` are log-likelihood requests, of which the gold pair
    may be one, `prompt` a generation request, where there are any.
    """

    gold: tuple[str, str] | None
    gold_bytes: int
    choices: tuple[Instance, ...] = ()
    prompt: Instance | None = None


class Benchmark(ABC):
    """What the scorer asks of each benchmark.

    `scored` names the metric of the choices or the generated texts, `generates` says which.
    `higher_is_better` says it of a metric; of one that isn't named, it is.
    """

    scored: str
    generates = True
    higher_is_better: Mapping[str, bool] = {}

    @property
    def stock_shots(self) -> int:
        """The shots lm-eval's task is published with, or as many as can be shown."""
        return 0

    @property
    def most_shots(self) -> int:
        """The shots that can be asked for: as published for the four, the pool's elsewhere."""
        return self.stock_shots

    @property
    def stock_max_new_tokens(self) -> int:
        """New tokens lm-eval lets a model write; 0 where nothing is generated."""
        return 0

    @abstractmethod
    def questions(self, ids: Sequence[str], shots: int, max_new_tokens: int) -> dict[str, Question]:
        """Questions by item id, in the order of `ids`."""

    def unusable(self) -> str | None:
        """Why answers can't be scored on this machine, or None."""
        return None

    @abstractmethod
    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        """Scores of questions whose requests carry their answers in `resps`."""


def gold_bytes(gold: str) -> int:
    """UTF-8 length of a gold answer."""
    return len(without_surrogates(gold)[0].encode())

"""The benchmarks: what is asked of a model, and how its answers are scored.

A benchmark turns items into `Question`s at a number of shots (stock prompts through lm-eval's
task code) and model answers into per-item outcomes. It knows nothing of contexts or subsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mixloop.evals.items import Row

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


# lm-eval's own bound where a task file names none
STOCK_NEW_TOKENS = 256

Outcomes = dict[str, dict[str, float]]


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


class Benchmark(Protocol):
    """What the scorer asks of each benchmark.

    `scored` names the metric of the choices or the generated texts, `generates` says which.
    `higher_is_better` holds the metrics of `outcomes` for which that isn't so.
    """

    scored: str
    generates: bool

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """Whether more of a metric is better; of a metric that isn't named, it is."""

    @property
    def stock_shots(self) -> int:
        """The shots lm-eval's task is published with, or as many as can be shown."""

    @property
    def most_shots(self) -> int:
        """The shots that can be asked for: as published for the four, the pool's elsewhere."""

    @property
    def stock_room(self) -> int:
        """New tokens lm-eval lets a model write; 0 where nothing is generated."""

    def questions(self, ids: Sequence[str], shots: int, room: int) -> dict[str, Question]:
        """Questions by item id."""

    def unusable(self) -> str | None:
        """Why answers can't be scored on this machine, or None."""

    def outcomes(self, questions: Mapping[str, Question]) -> Outcomes:
        """Scores of questions whose requests carry their answers in `resps`."""


def _bytes(row: Row) -> int:
    return len(str(row["gold"]).encode())

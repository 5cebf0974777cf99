"""Merges of a checkpoint's experts: their bits per byte on the steering items, and the gradient.

The merge of a mixture w is ``checkpoint + sum_i w_i delta_i``, which stands for a model trained on
w (MergeMix 2601.17858, DeMix 2602.00747). The gradient after w_i is the inner product of the
parameters' gradient with delta_i: one way back through the model replaces a branch per source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mixloop.common.errors import one_line
from mixloop.evals import EvalSettings, Outcomes
from mixloop.evals.checkpoints import WeightSum
from mixloop.evals.engine import load_checkpoint

from .answer_logprobs import read_answers
from .gold_answers import (
    GoldAnswer,
    Items,
    bits_per_byte,
    chosen,
    draw_items,
    gold_answers,
    outcomes,
)
from .merged_weights import MergedWeights

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM

Weights = Mapping[str, float]
Losses = dict[str, float]
Slopes = dict[str, dict[str, float]]

MEMORY = 4 * 2**30
"""Bytes of weights that are kept between passes unless told otherwise."""


class NoGradientsError(Exception):
    """This model gives no gradients (one line says why): score merges instead."""


class Merges:
    """One checkpoint, an expert's delta per source, and the gold answers that steer.

    `sources` are the deltas' names; `benchmarks` those of the settings that have gold answers.
    Items whose answer doesn't fit the context are left out, as in scoring. `obstacle` says why
    there are no gradients, as far as that is known before one is asked for.

    Weights are coefficients by source: one that isn't named counts 0, and nothing is asked of
    their sum. `items` are ids by benchmark (None: all of them); benchmarks that aren't named are
    left out.

    Args:
        checkpoint: The folder that the experts started from.
        deltas: Files of `write_delta` by source.
        settings: As the run's checkpoints are scored.
        memory: Bytes of checkpoint and deltas that may be kept; the rest is read at each pass.

    Raises:
        CheckpointError: checkpoint or deltas can't be read, or aren't of one model.
        ItemsError: a benchmark has no items.
    """

    def __init__(
        self,
        checkpoint: Path,
        deltas: Mapping[str, Path],
        settings: EvalSettings,
        *,
        memory: int = MEMORY,
    ) -> None:
        self._checkpoint = checkpoint
        self._deltas = dict(deltas)
        self._settings = settings
        self._weights = MergedWeights(checkpoint, deltas, memory)
        self._at: Weights | None = None
        try:
            self._lm = self._load(None)
            self.obstacle = self._weights.why_not_in_place(self._lm.model)
            self._in_place = self.obstacle is None
            self._answers = gold_answers(settings, self._lm)
        except BaseException:
            self._weights.close()
            raise

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the deltas."""
        return self._weights.sources

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Those that losses are of."""
        return tuple(self._answers)

    @property
    def items(self) -> dict[str, tuple[str, ...]]:
        """Ids of the items that are asked, as scorecards have them."""
        return {name: tuple(a.item for a in answers) for name, answers in self._answers.items()}

    def draw(self, number: int, seed: int) -> dict[str, tuple[str, ...]]:
        """A seeded draw of at most `number` items of each benchmark."""
        return draw_items(self._answers, number, seed)

    def close(self) -> None:
        """Closes the deltas' files."""
        self._weights.close()

    def losses(self, weights: Weights, items: Items | None = None) -> Losses:
        """Bits per byte of the merge by benchmark; infinite where its numbers are not finite.

        Raises:
            CheckpointError: the files are gone or have changed.
        """
        return {name: bits_per_byte(found) for name, found in self.outcomes(weights, items).items()}

    def outcomes(self, weights: Weights, items: Items | None = None) -> dict[str, Outcomes]:
        """By benchmark and item what scoring measures: `bits_per_byte`, and `bytes`, its weight.

        Raises:
            CheckpointError: the files are gone or have changed.
        """
        asked = chosen(self._answers, items)
        self._merge(weights)
        found = {}
        for name, answers in asked.items():
            logprobs = self._lm.score_tokens([(a.head, a.tail) for a in answers])
            found[name] = outcomes(answers, logprobs)
            self._lm.forget()
        return found

    def losses_and_gradients(
        self, weights: Weights, items: Items | None = None
    ) -> tuple[Losses, Slopes]:
        """Bits per byte by benchmark, and their derivatives by benchmark and source.

        Each benchmark takes one pass over the deltas.

        Raises:
            NoGradientsError: this model gives none.
            CheckpointError: the files are gone or have changed.
        """
        losses: Losses = {}
        slopes: Slopes = {}
        for name in chosen(self._answers, items):
            part = None if items is None else {name: items[name]}
            of_one, slopes[name] = self.losses_and_slope(weights, {name: 1.0}, part)
            losses |= of_one
        return losses, slopes

    def losses_and_slope(
        self, weights: Weights, objective: Mapping[str, float], items: Items | None = None
    ) -> tuple[Losses, dict[str, float]]:
        """The losses of an objective's benchmarks, and its derivative by source.

        The objective is ``sum_b objective[b] * bits_per_byte_b``; one pass over the deltas.

        Raises:
            NoGradientsError: this model gives none.
            CheckpointError: the files are gone or have changed.
        """
        if self.obstacle is not None:
            raise NoGradientsError(self.obstacle)
        asked = chosen(self._answers, items)
        self._merge(weights)
        model = self._lm.model
        losses: Losses = {}
        try:
            with torch.enable_grad():
                for name, factor in objective.items():
                    losses[name] = self._backward(asked[name], factor)
            slope = self._weights.inner_products(model)
        except RuntimeError as error:
            # a kernel without a way back, or no memory for one
            self.obstacle = f"its model can't be differentiated here: {one_line(error)}"
            raise NoGradientsError(self.obstacle) from error
        finally:
            model.zero_grad(set_to_none=True)
        if not all(map(math.isfinite, (*losses.values(), *slope.values()))):
            raise NoGradientsError("the merge's gradients are not finite")
        return losses, slope

    def token_logprobs(
        self, weights: Weights, items: Items | None = None
    ) -> dict[str, dict[str, list[float]]]:
        """By benchmark and item the log-probability (nats) of each token of the gold answer."""
        asked = chosen(self._answers, items)
        self._merge(weights)
        found: dict[str, dict[str, list[float]]] = {}
        for name, answers in asked.items():
            of_item: dict[str, list[float]] = {}

            def take(index: int, logprobs: torch.Tensor) -> None:
                # called before the next benchmark's turn
                of_item[answers[index].item] = logprobs.tolist()  # noqa: B023

            with torch.inference_mode():
                read_answers(self._lm, answers, self._settings.batch_tokens, take)
            found[name] = {answer.item: of_item[answer.item] for answer in answers}
        return found

    def gold_bytes(self, benchmark: str) -> int:
        """UTF-8 bytes of all gold answers of a benchmark."""
        return sum(answer.bytes for answer in self._answers[benchmark])

    def _backward(self, answers: Sequence[GoldAnswer], factor: float) -> float:
        """A benchmark's loss; adds `factor` times its gradient to the parameters'."""
        per_nat = 1 / (math.log(2) * sum(answer.bytes for answer in answers))
        totals: list[float] = []

        def take(_: int, logprobs: torch.Tensor) -> torch.Tensor:
            totals.append(float(logprobs.detach().sum()))
            return logprobs.sum() * (-factor * per_nat)

        read_answers(self._lm, answers, self._settings.batch_tokens, take)
        return -math.fsum(totals) * per_nat

    def _merge(self, weights: Weights) -> None:
        """Makes the loaded model the merge of these weights, unless it is."""
        wanted = {source: weights.get(source, 0.0) for source in self.sources}
        unknown = [source for source in weights if source not in wanted]
        if unknown:
            raise ValueError(f"no delta of source {unknown[0]!r}: there are {self.sources}")
        if wanted == self._at:
            return
        self._at = None
        self._lm.forget()
        if self._in_place:
            self._weights.set(self._lm.model, wanted)
        else:
            terms = {self._deltas[source]: weight for source, weight in wanted.items()}
            del self._lm  # two at a time may be too many
            self._lm = self._load(WeightSum.merge(self._checkpoint, terms))
        self._at = wanted

    def _load(self, weights: WeightSum | None) -> CheckpointLM:
        settings = self._settings
        return load_checkpoint(
            self._checkpoint,
            device=settings.device,
            dtype=settings.dtype,
            max_length=settings.max_length,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            add_bos=settings.add_bos,
            trained=settings.trained_probe,
            tokenizer=settings.trained_tokenizer,
            weights=weights,
        )

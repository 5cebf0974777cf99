"""Scores one checkpoint on every benchmark asked for; keeps what checkpoints share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mixloop.common.errors import one_line
from mixloop.evals import EvalSettings, Scorecard, training_state
from mixloop.evals.items import ItemsError
from mixloop.evals.sandbox import Sandbox

from .asked_benchmarks import AskedBenchmarks
from .model_cache import ModelCache
from .samples import write_samples
from .unit_scoring import score_unit
from .work_units import UnitScore, WorkUnit, assemble_score, total_cost

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM

log = logging.getLogger(__name__)

Progress = Callable[[str, str], None]
"""Hears what is being scored, and how far it is."""


class Scorer:
    """Holds items, tasks, plans and the sandbox between the checkpoints of a run."""

    def __init__(self, settings: EvalSettings) -> None:
        self.settings = settings
        self._models = ModelCache(settings)
        self._sandbox = Sandbox(settings.sandbox, settings.program_timeout)
        self._asked = AskedBenchmarks(settings, self._sandbox)

    def close(self) -> None:
        """Ends the sandbox."""
        self._sandbox.close()

    def score(
        self,
        checkpoint: Path,
        progress: Progress = lambda name, state: None,
        earlier: Sequence[Path] = (),
    ) -> Scorecard:
        """The scorecard of one checkpoint; a benchmark that fails is missing with the reason.

        With `earlier` ones, newest first, it is that of the mean of their weights and its own;
        those that are gone are left out. The model stays loaded until :meth:`release`, for
        :meth:`samples`.
        """
        earlier = existing(earlier)
        began = time.monotonic()
        progress("checkpoint", "loading")
        state = training_state(checkpoint)
        self.load(checkpoint, earlier)
        scores: list[UnitScore] = []
        for unit in self.units():
            progress(unit.benchmark, f"running{unit.which()}")
            scores.append(self.run(unit, checkpoint, earlier))
        return self.assemble_card(checkpoint, state, scores, time.monotonic() - began, earlier)

    def samples(self, card: Scorecard, path: Path) -> None:
        """Writes what a scored checkpoint says to fixed prompts beside the scorecard's file.

        Raises:
            OSError: they can't be written.
        """
        *earlier, _ = map(Path, card.averaged or [card.checkpoint])
        lm = self.load(Path(card.checkpoint), earlier[::-1])
        if not isinstance(lm, str):
            write_samples(lm, card, path, self.settings)

    def load(self, checkpoint: Path, earlier: Sequence[Path] = ()) -> CheckpointLM | str:
        """The checkpoint's model, or why there is none; loaded once until :meth:`release`."""
        return self._models.load(checkpoint, earlier)

    def release(self) -> None:
        """Lets go of the loaded model."""
        self._models.release()

    def units(self) -> list[WorkUnit]:
        """All work on one checkpoint, in order; a benchmark without items is one unit."""
        units: list[WorkUnit] = []
        for name in self.settings.asked:
            try:
                count = len(self._asked.parts(name))
            # said where it is run
            except Exception:
                count = 1
            units += [WorkUnit(benchmark=name, part=part, parts=count) for part in range(count)]
        return units

    def run(self, unit: WorkUnit, checkpoint: Path, earlier: Sequence[Path] = ()) -> UnitScore:
        """Scores one unit; whatever goes wrong is in the score."""
        name = unit.benchmark
        lm = self.load(checkpoint, earlier)
        if isinstance(lm, str):
            return UnitScore(unit=unit, failed=lm)
        try:
            ids = self._asked.parts(name)[unit.part]
            prepared, plan = self._asked.prepared(name), self._asked.plan(name, lm)
            return score_unit(unit, ids, prepared, plan, lm)
        except ItemsError as error:
            return UnitScore(unit=unit, failed=str(error))
        # one benchmark's fault, whatever it is, must not cost the others their scores
        except Exception as error:
            log.exception("%s failed", name)
            return UnitScore(unit=unit, failed=f"{name}: {one_line(error)}")

    def data_kinds(self) -> dict[str, str]:
        """Where the items of each benchmark that has any come from."""
        return self._asked.data_kinds()

    def assemble_card(
        self,
        checkpoint: Path,
        state: tuple[int | None, int | None],
        scores: Sequence[UnitScore],
        seconds: float,
        earlier: Sequence[Path] = (),
    ) -> Scorecard:
        """The scorecard of all units' scores, in whatever order they came.

        `state` is the checkpoint's step and tokens, read while it was surely there; `earlier` are
        those averaged with it, newest first.
        """
        average = self.settings.average
        averaged = (*reversed(earlier), checkpoint) if average > 1 or earlier else ()
        step, tokens = state
        by_benchmark = {
            name: [score for score in scores if score.unit.benchmark == name]
            for name in self.settings.asked
        }
        return Scorecard(
            schema="mixloop/scorecard/1",
            checkpoint=str(checkpoint),
            step=step,
            tokens=tokens,
            average=average,
            averaged=tuple(map(str, averaged)),
            benchmarks={name: assemble_score(name, units) for name, units in by_benchmark.items()},
            seconds=round(seconds, 3),
            cost={name: total_cost(units) for name, units in by_benchmark.items()},
            settings_digest=self.settings.digest(),
            engine=_engine(self._sandbox),
        )


def existing(checkpoints: Sequence[Path]) -> list[Path]:
    """Those of some checkpoints that are there."""
    return [folder for folder in checkpoints if (folder / "config.json").is_file()]


def _engine(sandbox: Sandbox) -> dict[str, str]:
    versions = {name: version(name) for name in ("lm_eval", "torch", "transformers")}
    # asked here, so that the scorecard says the same whoever ran the programs
    sandbox.unusable()
    return {**versions, "sandbox": sandbox.kind}

"""A played evaluation worker: scores by a formula, and fails in every way a worker can."""

from __future__ import annotations

import math
from typing import Any

from mixloop.evals import BenchmarkScore, EvalSettings, Metric, Scorecard
from mixloop.evals.workers import Failure

from .here import sim

ITEMS = 4


class Evaluator:
    """Takes the place of :class:`mixloop.evals.workers.Evaluator`."""

    writing = False

    def __init__(self, settings: EvalSettings, log: Any) -> None:
        self._settings = settings
        self._digest = settings.digest()
        self._job: tuple[Any, Any] | None = None
        self._fate = ""
        self._polls = 0
        self._began = 0.0

    def start(self, checkpoint: Any, out: Any, earlier: Any = ()) -> None:
        faults = sim().faults
        if faults.draw("eval-no-worker"):
            raise OSError(11, "no worker for you")
        self._job, self._polls, self._began = (checkpoint, out), 0, sim().now
        kinds = ("eval-hang", "eval-crash", "eval-nan", "eval-partial")
        self._fate = next((kind for kind in kinds if faults.draw(kind, 3)), "")

    def poll(self) -> Scorecard | Failure | None:  # noqa: PLR0911 - a list of ends
        if self._job is None:
            return None
        if self._fate == "eval-hang" and sim().faults.on:
            if sim().now - self._began < 60:
                return None
            self._job = None
            return Failure("no scorecard within 60 s")
        self._polls += 1
        if self._polls < 2:
            return None
        (checkpoint, out), self._job = self._job, None
        if self._fate == "eval-crash":
            return Failure("the evaluation worker died (signal SIGKILL)")
        if not checkpoint.is_dir():
            return Failure(f"{checkpoint.name} is gone")
        card = self._card(checkpoint)
        try:
            card.write(out)
            card = Scorecard.read(out)
        except OSError as error:
            return Failure(f"scorecard lost: {error.strerror}")
        except ValueError as error:
            return Failure(f"scorecard lost: {error}".splitlines()[0])
        sim().scorecard_written()
        return card

    def _card(self, checkpoint: Any) -> Scorecard:
        step = int(checkpoint.name.rpartition("-")[2])
        benchmarks = {
            name: self._score(step, number)
            for number, name in enumerate(sorted(self._settings.benchmarks))
        }
        if self._fate == "eval-partial":
            first = next(iter(benchmarks))
            benchmarks[first] = BenchmarkScore(status="missing", reason="no sandbox")
        return Scorecard(
            checkpoint=str(checkpoint),
            step=step,
            benchmarks=benchmarks,
            seconds=1.0,
            settings_digest=self._digest,
        )

    def _score(self, step: int, number: int) -> BenchmarkScore:
        rng = sim().noise(step, number)
        base = 2 - step / 1000 + sim().fallen(step)
        items = {
            f"i{n}": {"bits_per_byte": base + n / 10 + rng.random() / 50, "bytes": 10}
            for n in range(ITEMS)
        }
        value = sum(item["bits_per_byte"] for item in items.values()) / ITEMS
        if self._fate == "eval-nan":
            value = math.nan
        metric = Metric(
            value=value, stderr=0.1, n=ITEMS, higher_is_better=False, asked=ITEMS, excluded=0
        )
        return BenchmarkScore(
            status="ok",
            metrics={"bits_per_byte": metric},
            items=items,
            data=f"packages: {ITEMS} items",
            data_kind="packages",
        )

    def stop(self) -> None:
        self._job = None

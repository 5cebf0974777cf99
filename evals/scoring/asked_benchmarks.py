"""The benchmarks that a run asks, each with its chosen items and its plan, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mixloop.evals import EvalSettings
from mixloop.evals.benchmarks import (
    Benchmark,
    BenchmarkPlan,
    fit_shots,
    load_items,
    make_benchmark,
)
from mixloop.evals.items import choose
from mixloop.evals.sandbox import Sandbox

from .work_units import parts

if TYPE_CHECKING:
    from mixloop.evals.engine import CheckpointLM


@dataclass(frozen=True)
class PreparedBenchmark:
    """A benchmark over its chosen items: their ids, and where they come from."""

    benchmark: Benchmark
    ids: tuple[str, ...]
    data: str
    data_kind: str


class AskedBenchmarks:
    """What the settings ask, by benchmark.

    Args:
        settings: Which items, at how many shots.
        sandbox: Runs what HumanEval is answered.
    """

    def __init__(self, settings: EvalSettings, sandbox: Sandbox) -> None:
        self._settings = settings
        self._sandbox = sandbox
        self._prepared: dict[str, PreparedBenchmark] = {}
        # by benchmark, with the tokenizer and the context it was made for: a run has one of each
        self._plans: dict[str, tuple[Any, int, BenchmarkPlan]] = {}

    def parts(self, name: str) -> list[tuple[str, ...]]:
        """Ids of the items by unit of work.

        Raises:
            ItemsError: it has no items.
        """
        return parts(name, self.prepared(name).ids, self._settings.unit_items)

    def prepared(self, name: str) -> PreparedBenchmark:
        """The benchmark over its items.

        Raises:
            ItemsError: it has none.
        """
        if name not in self._prepared:
            settings = self._settings.asked[name]
            items = load_items(name, settings.data)
            subset = choose(items.rows, settings.items, self._settings.seed)
            self._prepared[name] = PreparedBenchmark(
                make_benchmark(name, items, subset, self._sandbox),
                tuple(row["id"] for row in subset),
                items.describe(len(subset)),
                items.kind,
            )
        return self._prepared[name]

    def plan(self, name: str, lm: CheckpointLM) -> BenchmarkPlan:
        """What is asked of a model: equal for all models of one tokenizer and context.

        Raises:
            ItemsError: the benchmark has no items.
        """
        tokenizer, max_length, plan = self._plans.get(name, (None, 0, None))
        if plan is None or tokenizer is not lm.tokenizer or max_length != lm.max_length:
            prepared = self.prepared(name)
            plan = fit_shots(prepared.benchmark, prepared.ids, self._settings.asked[name], lm)
            self._plans[name] = lm.tokenizer, lm.max_length, plan
        return plan

    def data_kinds(self) -> dict[str, str]:
        """Where the items of each benchmark that has any come from."""
        return {name: prepared.data_kind for name, prepared in self._prepared.items()}

"""A run as Prometheus metrics. Pure.

Names and units follow Prometheus' conventions: base units, ``_total`` for what only grows. What is
not known is absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mixloop.common.text import clean
from mixloop.controller.core import heartbeat
from mixloop.controller.views import CheckpointScores, RunStanding

from .timings import BUCKETS, Timings

Values = float | None | Mapping[Any, float | None]
"""A metric's value, or a value by its label's value or labels' values; None where not known."""

# by name, without `mixloop_`: the help, and the names of the labels
METRICS: dict[str, tuple[str, ...]] = {
    "run_info": ("The run.", "run"),
    "trainer_alive": ("1 while the trainer's heartbeat moves, else 0.",),
    "trainer_state": ("1 for the state that the trainer is in.", "state"),
    "heartbeat_silent_seconds": ("Seconds since the trainer's heartbeat was seen to move.",),
    "trainer_incarnation": ("Starts of the trainer.",),
    "step": ("Optimizer steps done; goes back at a resume.",),
    "tokens_total": ("Tokens trained on.",),
    "budget_tokens": ("Tokens of the whole run.",),
    "tokens_per_second": ("Training speed.",),
    "loss": ("Training loss of the last step.",),
    "learning_rate": ("Learning rate of the last step.",),
    "nan_steps_total": ("Steps whose gradient was not finite.",),
    "loss_spikes_total": ("Times the loss left its recent range.",),
    "checkpoint_failures": ("Attempts in a row to write a checkpoint that the disk did not take.",),
    "weight": ("Share of training tokens per source, asked and applied.", "source", "kind"),
    "generation": ("Number of the order asked for and of the one applied.", "kind"),
    "source_tokens_total": ("Tokens drawn per source.", "source"),
    "source_unique_tokens": ("Unique tokens per source.", "source"),
    "source_epochs": ("Passes over each source so far.", "source"),
    "source_epochs_cap": ("guards.max_epochs.", "source"),
    "source_loss": ("Training loss per source.", "source"),
    "benchmark": ("Scores of the newest scored checkpoint.", "benchmark", "metric"),
    "benchmark_standard_error": ("Standard error of mixloop_benchmark.", "benchmark", "metric"),
    "benchmark_missing": ("1 for a benchmark that the newest scorecard lacks.", "benchmark"),
    "scored_tokens": ("Tokens of the newest scored checkpoint.",),
    "decisions_total": ("Decisions by verdict.", "verdict"),
    "evaluations_total": ("Checkpoints by what became of their evaluation.", "state"),
    "experiments_total": ("Experiments by what became of them.", "state"),
    "experiment_tokens": ("Tokens that experiments may take, and that they have.", "kind"),
    "experiment_branches": ("Branches of the experiment under way.", "kind"),
    "checkpoints_waiting": ("Complete checkpoints that are not scored yet.",),
    "unreadable_files": ("Files of the run that can't be read and count as no news.", "file"),
    "paused": ("1 while decisions are paused.",),
    "approvals_waiting": ("Decisions that wait for a person.",),
    "orders_pending": ("Orders that are not in force yet.",),
    "outbox_rows": ("Entries that MLflow has not got yet.",),
    "outbox_sent_total": ("Entries that MLflow has got.",),
    "outbox_refused_total": ("Entries let go because MLflow called them invalid.",),
    "tracker_failing": ("1 while the last attempt to reach MLflow failed.",),
}
UNREADABLE = ("status.json", "schedule.jsonl", "holds.json", "log", "checkpoint")


@dataclass(frozen=True)
class RunMetrics(Collector):
    """The metrics of a run, for the client library's exposition.

    Attributes:
        run: how it stands.
        timings: how long the controller's looks take.
    """

    run: RunStanding
    timings: Timings

    def collect(self) -> Iterator[Metric]:
        """Every metric of which something is known."""
        values = {
            **_trainer(self.run),
            **_sources(self.run),
            **_rest(self.run),
            **_experiments(self.run),
        }
        if self.run.scores:
            values |= _scores(self.run.scores[-1])
        for name, (about, *labels) in METRICS.items():
            family = metric(name, about, labels, values.get(name))
            if family.samples:
                yield family
        below = accumulate(list(self.timings.counts))
        yield HistogramMetricFamily(
            "mixloop_reconcile_seconds",
            "Seconds of one look at the run and the action that followed.",
            buckets=list(zip([*(f"{bound:g}" for bound in BUCKETS), "+Inf"], below, strict=True)),
            sum_value=self.timings.total,
        )


def metric(name: str, about: str, labels: Sequence[str], values: Values) -> Metric:
    """One metric: a counter by its name, else a gauge; without a sample where nothing is known."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(f"mixloop_{name}", about, labels=labels)
    for key, value in (values if isinstance(values, Mapping) else {(): values}).items():
        if value is not None:
            family.add_metric(list(map(clean, (key,) if isinstance(key, str) else key)), value)
    return family


def _trainer(run: RunStanding) -> dict[str, Values]:
    state, status = run.trainer.state, run.status
    values: dict[str, Values] = {
        "trainer_alive": None if state == "unknown" else state == "alive",
        "trainer_state": {name: name == state for name in get_args(heartbeat.State)},
        "heartbeat_silent_seconds": run.trainer.silent,
    }
    if status is not None:
        values |= {
            "trainer_incarnation": status.incarnation,
            "step": status.step,
            "tokens_total": status.tokens,
            "budget_tokens": status.budget,
            "tokens_per_second": status.tokens_per_second,
            "loss": status.loss,
            "learning_rate": status.lr,
        }
        failed = status.failed_checkpoint
        values["checkpoint_failures"] = 0 if failed is None else failed.attempts
        if status.health is not None:
            values["nan_steps_total"] = status.health.nan_steps
            values["loss_spikes_total"] = status.health.spikes
    return values


def _sources(run: RunStanding) -> dict[str, Values]:
    orders = {"asked": run.asked, "applied": run.status.in_force if run.status else None}
    sources = run.sources
    return {
        "weight": {
            (name, kind): weight
            for kind, order in orders.items()
            if order is not None
            for name, weight in order.weights.items()
        },
        "generation": {
            kind: order.generation for kind, order in orders.items() if order is not None
        },
        "source_tokens_total": {source.name: source.tokens for source in sources},
        "source_unique_tokens": {source.name: source.unique_tokens for source in sources},
        "source_epochs": {source.name: source.epochs for source in sources},
        "source_epochs_cap": {source.name: run.max_epochs for source in sources},
        "source_loss": {source.name: source.loss for source in sources},
    }


def _scores(newest: CheckpointScores) -> dict[str, Values]:
    scores = {
        (name, metric): score
        for name, benchmark in newest.benchmarks.items()
        for metric, score in benchmark.metrics.items()
    }
    return {
        "benchmark": {labels: score.value for labels, score in scores.items()},
        "benchmark_standard_error": {labels: score.stderr for labels, score in scores.items()},
        "benchmark_missing": {
            name: benchmark.status != "ok" for name, benchmark in newest.benchmarks.items()
        },
        "scored_tokens": newest.tokens,
    }


def _experiments(run: RunStanding) -> dict[str, Values]:
    made = run.experiments
    if not made.budget and not made.states:
        return {}
    progress = made.progress
    return {
        "experiments_total": made.states,
        "experiment_tokens": {"budget": made.budget, "charged": made.charged},
        "experiment_branches": None
        if progress is None
        else {"done": progress.done, "all": progress.branches},
    }


def _rest(run: RunStanding) -> dict[str, Values]:
    unreadable = dict.fromkeys(UNREADABLE, 0)
    for file in run.unreadable:  # by kind: thousands of checkpoints make no thousands of series
        kind = "log" if file.file.endswith(".log") else "checkpoint"
        unreadable[file.file if file.file in unreadable else kind] += 1
    return {
        "run_info": {run.run or "": 1},
        "decisions_total": run.verdicts,
        "evaluations_total": run.evaluations,
        "checkpoints_waiting": run.waiting,
        "unreadable_files": unreadable,
        "paused": run.operators.paused,
        "approvals_waiting": len(run.operators.awaiting),
        "orders_pending": len(run.orders),
        "outbox_rows": run.tracking.waiting,
        "outbox_sent_total": run.tracking.sent,
        "outbox_refused_total": run.tracking.refused,
        "tracker_failing": run.tracking.last_error is not None,
    }

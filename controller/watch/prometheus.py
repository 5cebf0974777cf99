"""A view of a run as Prometheus text, version 0.0.4 of the exposition format. Pure.

Names and units follow Prometheus' conventions: base units, ``_total`` for what only grows.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mixloop.common.text import clean
from mixloop.controller.views import RunSnapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
STATES = ("never started", "alive", "stalled", "stopped", "finished", "unknown")

Sample = tuple[Mapping[str, str], float | None]


@dataclass
class Timings:
    """A histogram of durations in seconds; written by one thread, read by another."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        at = next((n for n, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
        self.counts[at] += 1
        self.total += seconds


@dataclass(frozen=True)
class Family:
    """One metric: its name, type (gauge, counter or histogram), help and samples."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


def text(families: Iterable[Family]) -> str:
    """The exposition: families without a sample are left out, as are values that are not known."""
    lines: list[str] = []
    for family in families:
        known = [(labels, value) for labels, value in family.samples if value is not None]
        if not known:
            continue
        lines += [
            f"# HELP {family.name} {_help(family.help)}",
            f"# TYPE {family.name} {family.kind}",
        ]
        for labels, value in known:
            suffix = str(labels.get("__suffix__", ""))
            rest = {name: one for name, one in labels.items() if name != "__suffix__"}
            lines.append(f"{family.name}{suffix}{_labels(rest)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _help(said: str) -> str:
    return said.replace("\\", r"\\").replace("\n", r"\n")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items()) + "}"


def _quoted(value: str) -> str:
    said = clean(value).encode("utf-8", "replace").decode()
    return said.replace("\\", r"\\").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(value)


def families(
    look: RunSnapshot,
    verdicts: Mapping[str, int],
    evaluations: Mapping[str, int],
    timings: Timings | None = None,
) -> list[Family]:
    """Everything that is told of a run.

    Args:
        verdicts: decisions so far, by verdict.
        evaluations: evaluations so far, by state.
        timings: how long the controller's looks take.
    """
    found = look.overview
    return [
        Family("mixloop_run_info", "gauge", "The run.", [({"run": str(found["run"] or "")}, 1)]),
        *_trainer(found["trainer"]),
        *_mixture(found, look.params.get("max_epochs")),
        *_scores(look),
        Family(
            "mixloop_decisions_total",
            "counter",
            "Decisions by verdict.",
            [({"verdict": verdict}, count) for verdict, count in verdicts.items()],
        ),
        Family(
            "mixloop_evaluations_total",
            "counter",
            "Checkpoints by what became of their evaluation.",
            [({"state": state}, count) for state, count in evaluations.items()],
        ),
        Family(
            "mixloop_checkpoints_waiting",
            "gauge",
            "Complete checkpoints that are not scored yet.",
            [({}, look.waiting)],
        ),
        _unreadable(found["unreadable"]),
        *_operators(found),
        *_tracker(found["tracking"]),
        *([] if timings is None else [_histogram(timings)]),
    ]


def _unreadable(found: Sequence[Mapping[str, str]]) -> Family:
    """Per kind of file, so that thousands of checkpoints make no thousands of series."""
    counts = dict.fromkeys(("status.json", "schedule.jsonl", "holds.json", "checkpoint"), 0)
    for one in found:
        counts[one["file"] if one["file"] in counts else "checkpoint"] += 1
    return Family(
        "mixloop_unreadable_files",
        "gauge",
        "Files of the run that can't be read and count as no news.",
        [({"file": name}, count) for name, count in counts.items()],
    )


def _one(name: str, kind: str, said: str, value: float | None) -> Family:
    return Family(f"mixloop_{name}", kind, said, [({}, value)])


def _trainer(found: Mapping[str, object]) -> list[Family]:
    def number(name: str) -> float | None:
        value = found.get(name)
        return float(value) if isinstance(value, int | float) else None

    word = str(found["state"])
    alive = None if word == "unknown" else float(word == "alive")
    health = found.get("health")
    nan_steps = health["nan_steps"] if isinstance(health, Mapping) else None
    spikes = health["spikes"] if isinstance(health, Mapping) else None
    return [
        _one("trainer_alive", "gauge", "1 while the trainer's heartbeat moves, else 0.", alive),
        Family(
            "mixloop_trainer_state",
            "gauge",
            "1 for the state that the trainer is in.",
            [({"state": state}, float(state == word)) for state in STATES],
        ),
        _one(
            "heartbeat_silent_seconds",
            "gauge",
            "Seconds since the trainer's heartbeat was seen to move.",
            number("silent"),
        ),
        _one("trainer_incarnation", "gauge", "Starts of the trainer.", number("incarnation")),
        _one("step", "gauge", "Optimizer steps done; goes back at a resume.", number("step")),
        _one("tokens_total", "counter", "Tokens trained on.", number("tokens")),
        _one("budget_tokens", "gauge", "Tokens of the whole run.", number("budget")),
        _one("tokens_per_second", "gauge", "Training speed.", number("tokens_per_second")),
        _one("loss", "gauge", "Training loss of the last step.", number("loss")),
        _one("learning_rate", "gauge", "Learning rate of the last step.", number("lr")),
        _one("nan_steps_total", "counter", "Steps whose gradient was not finite.", nan_steps),
        _one("loss_spikes_total", "counter", "Times the loss left its recent range.", spikes),
    ]


def _mixture(found: Mapping[str, object], cap: float | None) -> list[Family]:
    mix, ledger = found["mixture"], found["ledger"]
    assert isinstance(mix, Mapping)
    assert isinstance(ledger, Mapping)
    kinds = {kind: mix[kind] for kind in ("asked", "applied") if mix[kind]}
    return [
        Family(
            "mixloop_weight",
            "gauge",
            "Share of training tokens per source, as asked for and as applied.",
            [
                ({"source": name, "kind": kind}, weight)
                for kind, one in kinds.items()
                for name, weight in one["weights"].items()
            ],
        ),
        Family(
            "mixloop_generation",
            "gauge",
            "Number of the order asked for and of the one applied.",
            [({"kind": kind}, one["generation"]) for kind, one in kinds.items()],
        ),
        Family(
            "mixloop_source_tokens_total",
            "counter",
            "Tokens drawn per source.",
            [({"source": name}, one["tokens"]) for name, one in ledger.items()],
        ),
        Family(
            "mixloop_source_unique_tokens",
            "gauge",
            "Unique tokens per source.",
            [({"source": name}, one["unique_tokens"]) for name, one in ledger.items()],
        ),
        Family(
            "mixloop_source_epochs",
            "gauge",
            "Passes over each source so far.",
            [({"source": name}, one["epochs"]) for name, one in ledger.items()],
        ),
        Family(
            "mixloop_source_epochs_cap",
            "gauge",
            "guards.max_epochs.",
            [({"source": name}, cap) for name in ledger],
        ),
        Family(
            "mixloop_source_loss",
            "gauge",
            "Training loss per source.",
            [({"source": name}, one.get("loss")) for name, one in ledger.items()],
        ),
    ]


def _scores(look: RunSnapshot) -> list[Family]:
    if not look.scores:
        return []
    newest = look.scores[-1]
    rows = [
        ({"benchmark": name, "metric": metric}, one)
        for name, score in newest["benchmarks"].items()
        for metric, one in (score["metrics"] or {}).items()
    ]
    return [
        Family(
            "mixloop_benchmark",
            "gauge",
            "Benchmarks of the newest scored checkpoint; one that is missing is absent.",
            [(labels, one["value"]) for labels, one in rows],
        ),
        Family(
            "mixloop_benchmark_standard_error",
            "gauge",
            "Standard error of mixloop_benchmark.",
            [(labels, one["stderr"]) for labels, one in rows],
        ),
        Family(
            "mixloop_benchmark_missing",
            "gauge",
            "1 for a benchmark that the newest scorecard lacks.",
            [
                ({"benchmark": name}, float(score["status"] != "ok"))
                for name, score in newest["benchmarks"].items()
            ],
        ),
        _one("scored_tokens", "gauge", "Tokens of the newest scored checkpoint.", newest["tokens"]),
    ]


def _operators(found: Mapping[str, object]) -> list[Family]:
    people, pending = found["operators"], found["pending"]
    assert isinstance(people, Mapping)
    assert isinstance(pending, Mapping)
    return [
        _one("paused", "gauge", "1 while decisions are paused.", float(people["paused"])),
        _one(
            "approvals_waiting",
            "gauge",
            "Decisions that wait for a person.",
            len(people["awaiting"]),
        ),
        _one(
            "orders_pending",
            "gauge",
            "Orders that are not in force yet.",
            len(pending["orders"]),
        ),
    ]


def _tracker(found: Mapping[str, object]) -> list[Family]:
    waiting, sent = found["waiting"], found["sent"]
    assert isinstance(waiting, int)
    assert isinstance(sent, int)
    return [
        _one("outbox_rows", "gauge", "Entries that MLflow has not got yet.", waiting),
        _one("outbox_sent_total", "counter", "Entries that MLflow has got.", sent),
        _one(
            "tracker_failing",
            "gauge",
            "1 while the last attempt to reach MLflow failed.",
            float(found["last_error"] is not None),
        ),
    ]


def _histogram(timings: Timings) -> Family:
    counts, total = list(timings.counts), timings.total
    samples: list[Sample] = []
    below = 0
    for bound, count in zip((*BUCKETS, math.inf), counts, strict=True):
        below += count
        samples.append(({"__suffix__": "_bucket", "le": _number(bound)}, below))
    samples += [({"__suffix__": "_sum"}, total), ({"__suffix__": "_count"}, below)]
    said = "Seconds of one look at the run and the action that followed."
    return Family("mixloop_reconcile_seconds", "histogram", said, samples)

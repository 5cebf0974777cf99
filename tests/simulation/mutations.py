"""Deliberate bugs: the simulation is worth something only if it catches each of them."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mixloop.common import files
from mixloop.contract import order_acceptance, orders
from mixloop.controller.core import FileState, decide, experiment_plans, operator_requests
from mixloop.controller.journal import (
    experiment_records,
    journal,
    packing,
    queries,
    records,
    schema,
    tamper_seal,
)
from mixloop.controller.loop import (
    checkpoint_queue,
    mixture_file,
    observe,
    operator_inbox,
    policy_decisions,
    trainer_news,
)
from mixloop.controller.tracking import decision_traces, drain_child, mlflow_sink
from mixloop.policies.evidence import probation
from mixloop.policies.guards import GuardResult

from . import patches
from .here import sim
from .runner import Result, simulate

Change = tuple[Any, str, Any]


@dataclass(frozen=True)
class Mutation:
    """A bug, the invariants it may break (with blanks between), and a seed that shows it."""

    name: str
    what: str
    seed: int
    seen_by: str
    changes: Callable[[], list[Change]]


@contextlib.contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The product with this bug; inside :func:`patches.installed`."""
    changes = mutation.changes()
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def caught(bug: Mutation, most: int = 100) -> Result | None:
    """The first seed that sees the bug, its recorded one before all others; None: none of them.

    Which seed it is changes with every call that the product makes or leaves out.
    """
    for seed in dict.fromkeys([bug.seed, *range(most)]):
        with applied(bug):
            result = simulate(seed, 200)
        if result.violation is not None:
            return result
    return None


# -- files ------------------------------------------------------


def _no_file_fsync() -> list[Change]:
    def write_all(handle: int, data: bytes) -> None:
        files.os.write(handle, data)

    return [(files, "write_all", write_all)]


def _no_folder_fsync() -> list[Change]:
    return [(files, "fsync_folder", lambda folder: None)]


def _in_place() -> list[Change]:
    def write_json(path: Any, value: Any) -> None:
        data = (json.dumps(value, indent=1) + "\n").encode()
        fs, text = sim().fs, str(path)
        node = fs.find(text)
        if node is not None:
            node.data = node.synced = b""
        handle = fs.open(text, files.os.O_WRONLY | files.os.O_CREAT)
        try:
            half = len(data) // 2
            fs.write(handle, data[:half])
            fs.fsync(handle)
            fs.write(handle, data[half:])
            fs.fsync(handle)
        finally:
            fs.close(handle)
        fs.kept[text.rpartition("/")[0]] = dict(fs.folders[text.rpartition("/")[0]])

    return [(orders, "write_json", write_json)]


def _publish_first() -> list[Change]:
    real = records.decision

    def decision(journal: Any, record: Any, **rest: Any) -> str:
        if record.order is not None:
            order = orders.Order("r", journal.fence, record.order.generation, record.weights_after)
            sim().publish(sim().paths.mixture, order)
        return real(journal, record, **rest)

    return [(records, "decision", decision)]


# -- generations and fences ------------------------------------------------------


def _or_replace(table: str) -> Callable[..., None]:
    real = journal.insert

    def insert(tx: sqlite3.Connection, into: str, /, **columns: object) -> None:
        if into != table:
            real(tx, into, **columns)
            return
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        values = [
            packing.dumps(v) if name in journal.JSON_COLUMNS else v for name, v in columns.items()
        ]
        tx.execute(f"INSERT OR REPLACE INTO {into} ({names}) VALUES ({marks})", values)

    return insert


def _reuse_generation() -> list[Change]:
    def next_generation(self: mixture_file.MixtureFile, status: Any) -> int:
        applied = self._journal.value("SELECT MAX(generation) FROM orders WHERE applied_step > 0")
        return int(applied or 0) + 1

    return [
        (mixture_file.MixtureFile, "next_generation", next_generation),
        (records, "insert", _or_replace("orders")),
    ]


@contextlib.contextmanager
def _unfenced(self: journal.Journal) -> Iterator[sqlite3.Connection]:
    with self._writing():
        yield self._db


def _no_fence_check() -> list[Change]:
    return [(patches, "_real_transaction", _unfenced)]


def _fence_not_raised() -> list[Change]:
    real = journal.Journal.claim

    def claim(self: journal.Journal, run: str, *, above: int = 0) -> int:
        fence = real(self, run, above=above)
        if fence > 1:
            with patches._real_transaction(self) as tx:
                tx.execute("UPDATE lease SET fence = ?", (fence - 1,))
            self.fence = fence - 1
        return self.fence or 0

    return [(journal.Journal, "claim", claim)]


def _not_republished() -> list[Change]:
    real = mixture_file.MixtureFile._compare

    def compare(self: Any, data: bytes, newest: Any) -> Any:
        state, foreign = real(self, data, newest)
        same = newest is not None and newest.published_at and f'"generation": {newest.generation},'
        if state is FileState.STALE and same and same.encode() in data:
            return FileState.CURRENT, foreign
        return state, foreign

    return [(mixture_file.MixtureFile, "_compare", compare)]


def _trainer_ignores_fences() -> list[Change]:
    real = order_acceptance._check_turn

    def check(order: Any, after: Any, in_force: Any) -> None:
        real(replace(order, fence=max(order.fence, after[0])), after, in_force)

    return [(order_acceptance, "_check_turn", check)]


# -- guards and decisions ------------------------------------------------------


def _passes(weights: Any, plan: Any, context: Any, settings: Any) -> GuardResult:
    return GuardResult("pass", dict(weights), (), tuple(plan))


def _no_guards() -> list[Change]:
    return [(decide, "apply_guards", _passes)]


def _goes_elsewhere() -> list[Change]:
    def reversed_(observation: Any, weights: Any) -> dict[str, float]:
        return dict(zip(observation.sources, [*weights.values()][::-1], strict=True))

    return [(probation, "_over_sources", reversed_)]


def _no_guards_at_approval() -> list[Change]:
    return [(operator_requests, "apply_guards", _passes)]


def _approval_of_old() -> list[Change]:
    real = operator_requests._approve

    def approve(request: Any, context: Any) -> Any:
        if context.decision is None or context.status is None:
            return real(request, context)
        in_force = context.status.in_force.generation
        decision = replace(context.decision, against_generation=in_force)
        return real(request, replace(context, newest=0, decision=decision))

    return [
        (operator_requests, "_VERBS", {**operator_requests._VERBS, "approve": approve}),
        (records, "_supersede", lambda tx, by: None),
    ]


def _decides_twice() -> list[Change]:
    def to_decide(self: checkpoint_queue.CheckpointQueue) -> int | None:
        scored = self._journal.value("SELECT MAX(step) FROM evaluations WHERE state = 'scored'")
        count = self._journal.value("SELECT COUNT(*) FROM decisions WHERE step = ?", scored)
        return scored if count < 2 else None

    tables = schema.RUN_TABLES.replace("CREATE UNIQUE INDEX", "CREATE INDEX")
    return [
        (checkpoint_queue.CheckpointQueue, "to_decide", to_decide),
        (journal, "RUN_TABLES", tables),
    ]


# -- experiments ------------------------------------------------------


def _experiment_untold() -> list[Change]:
    untold: Change = (queries, "experiment_news", lambda journal, known: False)
    return [(queries, "experiments_ended", lambda journal: 0), untold]


def _experiment_unrecorded() -> list[Change]:
    return [(experiment_records, "started", lambda journal, name: journal.assert_fence())]


def _experiment_over_budget() -> list[Change]:
    real = experiment_plans.bound_experiment

    def bound(asked: Any, sources: Any, *, left: int, step_tokens: int) -> Any:
        return real(asked, sources, left=10**18, step_tokens=step_tokens)

    return [(experiment_plans, "bound_experiment", bound)]


def _experiment_outlives() -> list[Change]:
    return [(observe.RunObserver, "_experiment_over", lambda self, row, ended: "")]


def _receipt_early() -> list[Change]:
    def first(
        self: observe.RunObserver, status: Any, ended: bool, waiting: Any, under_way: str
    ) -> tuple[str, str]:
        rows = queries.open_experiments(self._run.journal)
        return (rows[0].id, self._experiment_over(rows[0], ended)) if rows else ("", "")

    return [(observe.RunObserver, "_experiment", first)]


def _receipt_first() -> list[Change]:
    real = queries.open_experiments

    def oldest(journal: Any) -> Any:
        return sorted(real(journal), key=lambda row: not row.receipt)

    return [(queries, "open_experiments", oldest)]


# -- what was done must be remembered ------------------------------------------------------


def _acknowledges_the_last() -> list[Change]:
    real = trainer_news.TrainerNews.newly_applied

    def newly(self: trainer_news.TrainerNews) -> Any:
        force = self.status.in_force.generation if self.status else 0
        return [applied for applied in real(self) if applied.generation == force]

    return [(trainer_news.TrainerNews, "newly_applied", newly)]


def _half_transactions() -> list[Change]:
    real = journal.Journal._writing

    @contextlib.contextmanager
    def writing(self: journal.Journal) -> Iterator[int | None]:
        failure: BaseException | None = None
        with real(self) as fence:
            try:
                yield fence
            except BaseException as error:
                failure = error  # and what was done so far is committed
        if failure is not None:
            raise failure

    return [(journal.Journal, "_writing", writing)]


def _forgets_pause() -> list[Change]:
    real = records.set_meta

    def set_meta(tx: Any, key: str, value: object) -> None:
        if key != "paused" or value is not False:
            real(tx, key, value)

    return [(records, "set_meta", set_meta)]


def _takes_twice() -> list[Change]:
    def handle(self: Any, state: Any) -> None:
        request = operator_inbox.requests.read(state.request, self._owners())
        answer = self._record(request, state)
        operator_inbox.requests.put_away(state.request, "taken")
        self._run.say(answer)

    real = operator_inbox.OperatorInbox.handle

    def either(self: Any, state: Any) -> None:
        try:
            handle(self, state)
        except operator_inbox.requests.RequestError:
            real(self, state)

    return [
        (operator_inbox.OperatorInbox, "handle", either),
        (records, "insert", _or_replace("requests")),
    ]


def _request_gone_first() -> list[Change]:
    real = operator_inbox.OperatorInbox.handle

    def handle(self: Any, state: Any) -> None:
        fs, path = sim().fs, str(state.request)
        node = fs.find(path)
        try:
            real(self, state)
        except BaseException:
            if node is not None and fs.find(path) is node:
                fs.unlink(path)
            raise

    return [(operator_inbox.OperatorInbox, "handle", handle)]


def _refuses_unreadable() -> list[Change]:
    return [(operator_inbox.OperatorInbox, "_may_pass", lambda self, name, error: False)]


# -- MLflow ------------------------------------------------------


def _no_keys() -> list[Change]:
    def enqueue(tx: sqlite3.Connection, *entries: Any) -> None:
        for entry in entries:
            count = tx.execute("SELECT COUNT(*) FROM outbox").fetchone()[0]
            asked_for = entry.key.startswith(("run", "end:", "outcome:"))
            key = entry.key if asked_for else f"{entry.key}#{count}"
            tx.execute(
                "INSERT OR IGNORE INTO outbox (key, kind, payload, created_ms) VALUES (?, ?, ?, ?)",
                (key, entry.kind, packing.dumps(entry.payload), records.now_ms()),
            )

    return [(records, "enqueue", enqueue)]


def _no_lookup() -> list[Change]:
    def models(self: Any, wanted: str) -> Any:
        return iter(())

    return [(mlflow_sink.Sink, "_models", models)]


def _drawn_ids() -> list[Change]:
    """As MLflow's own exporter does, which also lets nothing be found again."""
    drawn = random.Random(0)
    return [
        (decision_traces, "_number", lambda size, *of: drawn.getrandbits(8 * size)),
        (decision_traces.Traces, "_told_before", lambda self, decision: None),
    ]


def _takes_pages_for_answers() -> list[Change]:
    """What a proxy says is taken for MLflow's word, and at once."""
    real = mlflow_sink.Sink._call

    def call(self: Any, kind: str, payload: Any) -> None:
        try:
            real(self, kind, payload)
        except Exception as error:
            if "API request to" in str(error):
                raise mlflow_sink.Refused(str(error)) from error
            raise

    return [(mlflow_sink.Sink, "_call", call), (records, "DECLINES", 1)]


def _marks_failures() -> list[Change]:
    real = records.drained

    def drained(journal: Any, messages: Any) -> Any:
        said = [{"done": m["failed"]} if m.get("failed") else m for m in messages]
        return real(journal, said)

    return [(records, "drained", drained)]


def _marks_too_early() -> list[Change]:
    real = drain_child.MlflowDrain.start

    def start(self: drain_child.MlflowDrain, state: Any) -> None:
        real(self, state)
        with self.journal.transaction() as tx:
            tx.execute("UPDATE outbox SET done_at = 'now'")

    return [(drain_child.MlflowDrain, "start", start)]


def _fact_without_entry() -> list[Change]:
    """The outbox entry in a transaction of its own, after the fact's."""
    real_enqueue = records.enqueue
    real = records.decision

    def decision(journal: Any, record: Any, **rest: Any) -> str:
        kept: list[Any] = []
        records.enqueue = lambda tx, *entries: kept.extend(entries)
        try:
            name = real(journal, record, **rest)
        finally:
            records.enqueue = real_enqueue
        with journal.transaction() as tx:
            real_enqueue(tx, *kept)
        return name

    return [(records, "decision", decision)]


def _leaves_the_seal() -> list[Change]:
    real = tamper_seal.Seal._follow

    def follow(self: tamper_seal.Seal, sign: int, table: str, *cells: Any) -> None:
        if sign > 0 or table != "outbox":
            real(self, sign, table, *cells)

    return [(tamper_seal.Seal, "_follow", follow)]


MUTATIONS = (
    Mutation(
        "no-file-fsync",
        "a file is renamed before its bytes are fsynced",
        0,
        "published-survives",
        _no_file_fsync,
    ),
    Mutation(
        "no-folder-fsync",
        "a folder is not fsynced after a rename",
        0,
        "published-survives",
        _no_folder_fsync,
    ),
    Mutation(
        "written-in-place",
        "mixture.json is overwritten, not replaced",
        0,
        "published-survives",
        _in_place,
    ),
    Mutation(
        "publish-first",
        "an order is published before it is journaled",
        0,
        "journal-first",
        _publish_first,
    ),
    Mutation(
        "generation-reused",
        "an order that was not applied lends its number",
        0,
        "nothing-lost generations-grow",
        _reuse_generation,
    ),
    Mutation(
        "no-fence-check", "transactions do not assert the fence", 0, "one-fence", _no_fence_check
    ),
    Mutation(
        "fence-not-raised",
        "a start takes the fence of the one before",
        6,
        "nothing-lost one-fence one-decision fence-obeyed generations-grow requests-once",
        _fence_not_raised,
    ),
    Mutation(
        "not-republished",
        "a new controller leaves the file under the old fence",
        18,
        "fence-obeyed",
        _not_republished,
    ),
    Mutation(
        "trainer-ignores-fence",
        "the trainer takes orders of lower fences",
        128,
        "fence-obeyed",
        _trainer_ignores_fences,
    ),
    Mutation("no-guards", "what a policy proposes is not guarded", 1, "ledger guards", _no_guards),
    Mutation(
        "goes-elsewhere",
        "a run that became worse goes on to a mixture that it never had",
        7,
        "way-back",
        _goes_elsewhere,
    ),
    Mutation(
        "no-recheck",
        "an approval does not run the guards again",
        2,
        "guards ledger",
        _no_guards_at_approval,
    ),
    Mutation(
        "old-approval",
        "an approval ignores against_generation",
        59,
        "approval-current",
        _approval_of_old,
    ),
    Mutation(
        "forgets-waiting",
        "a proposal that is asked for again ends the one that waits",
        27,
        "approval-kept",
        lambda: [(policy_decisions.PolicyDecisions, "_waiting", lambda self: None)],
    ),
    Mutation(
        "decides-twice", "a checkpoint is decided on twice", 0, "one-decision", _decides_twice
    ),
    Mutation(
        "experiment-untold",
        "nobody is told that an experiment has ended",
        0,
        "experiment-told",
        _experiment_untold,
    ),
    Mutation(
        "experiment-unrecorded",
        "an experiment begins before that is on record",
        0,
        "one-experiment",
        _experiment_unrecorded,
    ),
    Mutation(
        "experiment-over-budget",
        "the guard of experiments forgets their budget",
        1,
        "experiment-budget",
        _experiment_over_budget,
    ),
    Mutation(
        "experiment-outlives",
        "an experiment goes on after the end of training",
        9,
        "experiment-ends one-experiment converges",
        _experiment_outlives,
    ),
    Mutation(
        "receipt-early",
        "a receipt begins before its order is in force",
        17,
        "receipt-twin",
        _receipt_early,
    ),
    Mutation(
        "receipt-first",
        "a receipt comes before a policy's experiment",
        25,
        "receipt-twin",
        _receipt_first,
    ),
    Mutation(
        "acknowledges-last",
        "only the order in force now is acknowledged",
        49,
        "acknowledged",
        _acknowledges_the_last,
    ),
    Mutation(
        "half-transactions",
        "what was written before an error stays",
        0,
        "sealed one-fence one-decision nothing-lost",
        _half_transactions,
    ),
    Mutation("forgets-resume", "a resume is answered and not kept", 0, "replay", _forgets_pause),
    Mutation(
        "takes-twice",
        "a request that lies there again is done again",
        0,
        "requests-once nothing-lost",
        _takes_twice,
    ),
    Mutation(
        "request-gone-first",
        "a request's file is gone before it is journaled",
        0,
        "requests-once",
        _request_gone_first,
    ),
    Mutation(
        "refuses-unreadable",
        "a request that can't be read now is refused (a bug found here)",
        24,
        "requests-once",
        _refuses_unreadable,
    ),
    Mutation("no-keys", "outbox entries have no key of the fact", 0, "tracker-unique", _no_keys),
    Mutation(
        "no-lookup",
        "a model is made without looking whether it is there",
        5,
        "tracker-unique",
        _no_lookup,
    ),
    Mutation(
        "drawn-ids",
        "the ids of traces are drawn, not made of what they name",
        5,
        "tracker-unique tracker-complete",
        _drawn_ids,
    ),
    Mutation(
        "pages-count",
        "what a proxy answers counts as MLflow's refusal",
        5,
        "tracker-complete",
        _takes_pages_for_answers,
    ),
    Mutation(
        "marks-failures",
        "an entry that failed is marked as sent",
        1,
        "tracker-complete",
        _marks_failures,
    ),
    Mutation(
        "marks-early",
        "entries are marked as sent when the drain starts",
        0,
        "tracker-unique tracker-complete",
        _marks_too_early,
    ),
    Mutation(
        "entry-apart",
        "a decision and its outbox entry are two transactions",
        2,
        "tracker-complete",
        _fact_without_entry,
    ),
    Mutation(
        "seal-left",
        "a transaction that removes rows leaves the seal as it was",
        0,
        "sealed",
        _leaves_the_seal,
    ),
)
BY_NAME = {one.name: one for one in MUTATIONS}

"""What goes wrong: the kinds of fault, and how often each has really happened."""

from __future__ import annotations

import errno
import random
from collections import Counter

KINDS = {
    "crash-before-transaction": "the controller dies before a journal write begins",
    "crash-before-commit": "the controller dies inside a journal write",
    "crash-after-commit": "the controller dies after a journal write, before anything else",
    "crash-in-file-write": "the controller dies at a create, write, fsync, rename or unlink",
    "crash-at-rest": "the controller dies between two looks",
    "power-loss": "a crash that also loses what was not fsynced",
    "read-estale": "a read fails with ESTALE",
    "read-enoent": "a read fails with ENOENT although the file is there",
    "read-eio": "a read fails with EIO",
    "read-torn": "a read gives the first part of a file, or zeros after it",
    "read-stale": "a read gives what the file held before",
    "rename-late": "a reader goes on seeing the file as it was before a rename",
    "list-failed": "a folder can't be listed",
    "write-enospc": "a create or write fails with ENOSPC",
    "write-eio": "a write, fsync or rename fails with EIO",
    "journal-enospc": "SQLite: database or disk is full",
    "journal-eio": "SQLite: disk I/O error",
    "journal-locked": "SQLite: database is locked",
    "journal-read-eio": "SQLite: a read fails with disk I/O error",
    "second-controller": "another controller takes over while the first lives, which then goes on",
    "takeover-in-publish": "another takes over between the first one's fence check and its rename",
    "clock-jump": "the wall clock jumps, back or forth, up to a year",
    "suspended": "the controller does not run for minutes, its monotonic clock does",
    "trainer-restart": "the trainer goes on from an older checkpoint",
    "trainer-rewind": "the same with --rewind: recorded segments after it are cut",
    "trainer-deaf": "the trainer runs on but looks at no order",
    "trainer-stalls": "the trainer does nothing, not even a heartbeat",
    "checkpoint-vanished": "a checkpoint is removed before it was scored",
    "checkpoint-half-written": "a checkpoint folder without its manifest",
    "checkpoint-repeated": "a checkpoint is written again at a step that was recorded",
    "eval-hang": "no scorecard within the time limit",
    "eval-crash": "the evaluation worker dies",
    "eval-nan": "a score is no number",
    "eval-partial": "a benchmark is missing from the scorecard",
    "eval-no-worker": "no evaluation worker can be started",
    "scorecard-lost": "the controller dies after the scorecard was written",
    "experiment-no-process": "no process can be started for an experiment",
    "experiment-hangs": "an experiment does not end within its time limit",
    "experiment-dies": "an experiment's process dies without a word",
    "experiment-fails": "an experiment ends without a result, and says why",
    "experiment-nan": "a branch's score is no number",
    "experiment-lost": "the controller dies after an experiment's result was written",
    "tracker-down": "MLflow can't be reached",
    "tracker-slow": "MLflow takes longer than a drain may last: it is killed",
    "tracker-duplicate": "MLflow does what it was asked and the answer is lost",
    "tracker-refuses": "MLflow refuses an entry for good",
    "tracker-page": "what stands before MLflow answers a request with a page of its own",
    "tracker-late": "a request that was given up takes effect later",
    "policy-raises": "the policy raises",
    "policy-hangs": "the policy does not answer",
    "policy-nonsense": "the policy proposes what is no mixture",
    "history-unread": "the policy's process can't read the journal",
    "policy-absurd": "the policy asks for an experiment that is none",
    "policy-garbage": "the policy's process says something that is no answer, or nothing",
    "policy-bloats": "the policy says more than anybody reads, or forges what its process says",
    "checkpoint-failed": "the disk takes no checkpoint: the trainer says so, and tries again later",
    "config-changed": "run.yaml is edited between two starts",
    "operator": "a person's request arrives",
    "request-rubbish": "a request file that is none",
    "request-again": "a request that was taken lies there again",
    "mixture-rubbish": "somebody writes rubbish over mixture.json",
    "mixture-stranger": "somebody publishes an order of their own, which the trainer may follow",
    "mixture-far": "somebody publishes an order whose numbers leave no room for another",
    "status-forged": "somebody's heartbeat says that an order far ahead was accepted",
}


class Crash(BaseException):
    """The end of a process: nobody catches it, nothing of its memory is used again."""


class Faults:
    """Draws faults from the seed while they are on, and counts those that happened."""

    def __init__(self, rng: random.Random, rate: float) -> None:
        self.rng = rng
        self.rate = rate
        self.on = True
        self.counts: Counter[str] = Counter()

    def draw(self, kind: str, share: float = 1.0) -> bool:
        """Whether this fault happens here and now; ``share`` of the run's rate."""
        if not self.on or self.rng.random() >= self.rate * share:
            return False
        self.happened(kind)
        return True

    def happened(self, kind: str) -> None:
        assert kind in KINDS, kind
        self.counts[kind] += 1


READ_ERRORS = {
    "read-estale": errno.ESTALE,
    "read-enoent": errno.ENOENT,
    "read-eio": errno.EIO,
}
WRITE_ERRORS = {"write-enospc": errno.ENOSPC, "write-eio": errno.EIO}
JOURNAL_ERRORS = {
    "journal-enospc": "database or disk is full",
    "journal-eio": "disk I/O error",
    "journal-locked": "database is locked",
}

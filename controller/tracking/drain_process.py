"""The child that carries the outbox to MLflow and ends when it is empty.

A process of its own because the MLflow client weighs 240 MB, and because a call to a server that
is down may block. It only reads the journal; it says on stdout what became of each entry, and the
controller marks them. Killed between an effect and that word, it does the effect again.

Entries go in their order, but none waits for another: what fails is left for the next drain, as
long as the server takes anything at all. Refused for good is only what MLflow itself, and not
something on the way to it, calls invalid again and again while it takes the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from mixloop.common.files import lock, open_regular
from mixloop.common.types import Json
from mixloop.controller.journal import Journal, queries

from .mlflow_database import make_database
from .mlflow_sink import Refused, Sink, line
from .server_certificate import tls_problem

# The client's defaults retry for minutes; ours is the loop that retries, from the journal.
LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRACKING_URI": "",  # never another server's because of the caller's environment
    "GIT_PYTHON_REFRESH": "quiet",
}
JOURNAL_TIMEOUT = 30.0  # seconds that a journal which is being written is waited for
MOST_FAILURES = 50  # entries that may fail in one drain before the rest is left for the next
BUDGET = 120.0  # seconds after which a drain in which something failed goes no further


def _sink(request: Json) -> Sink:
    make_database(request["uri"], request["uid"])
    artifacts = Path(request["artifacts"]) if request["artifacts"] else None
    folder = Path(request["folder"])
    return Sink(request["uri"], request["experiment"], request["uid"], artifacts, folder)


def waiting(journal: Journal, after: int = 0) -> Iterator[int]:
    """Numbers of the outbox's entries that have not arrived yet, in the order they were written."""
    seq = queries.next_waiting(journal, after=after)
    while seq is not None:
        yield seq
        seq = queries.next_waiting(journal, after=seq)


def _send(sink: Sink, journal: Journal, seq: int) -> None:
    """Carry an entry over; a run that is not there (another server, deleted) is made again."""
    entry = queries.numbered_entry(journal, seq)
    if entry is None:  # replaced by a newer one meanwhile
        return
    try:
        sink.send(journal, entry)
    except LookupError:
        run = queries.entry(journal, "run")
        if run is None or entry.kind == "run":
            raise
        sink.send(journal, run)
        sink.send(journal, entry)


def drain(request: Json, say: Callable[[Json], object]) -> int:
    """Carry over everything pending; ``say`` is told what became of each entry.

    ``{"done": seq}`` it arrived; ``{"declined": seq, "error": ...}`` MLflow calls it invalid;
    ``{"failed": seq, "error": ...}`` otherwise, 0 where nothing can be sent. After the entry
    of ``{"resume": seq}`` (too much fails) or ``{"away": seq}`` (nothing can be sent) the next
    drain is to begin. Returns the exit code.
    """
    try:
        path = Path(request["journal"])
        with closing(Journal(path, read_only=True, timeout=JOURNAL_TIMEOUT)) as journal:
            sink = _sink(request)
            failures = _drain(sink, journal, request.get("after", 0), say)
        if failures is not None and (assessments := sink.traces.assessments()):
            say({"assessments": assessments})
    except Exception as error:
        say({"failed": 0, "error": _named(error, request["uri"])})
        return 3
    return 0 if failures == 0 else 3


def _drain(sink: Sink, journal: Journal, after: int, say: Callable[[Json], object]) -> int | None:
    """Every entry once. Returns how many failed; None where nothing can be sent."""
    began, failures = time.monotonic(), 0
    for seq in waiting(journal, after):
        try:
            _send(sink, journal, seq)
        except Exception as error:
            if not sink.takes_writes():
                say({"failed": 0, "error": _named(error, sink.uri)})
                say({"away": seq})
                return None
            failures += 1
            if isinstance(error, Refused):
                say({"declined": seq, "error": str(error)[:500]})
            else:
                say({"failed": seq, "error": _named(error, sink.uri)})
            if failures >= MOST_FAILURES or time.monotonic() - began > BUDGET:
                say({"resume": seq})
                break
        else:
            say({"done": seq})
    return failures


def _named(error: Exception, uri: str) -> str:
    return (tls_problem(error, uri) or f"{type(error).__name__}: {line(error)}")[:500]


def main() -> None:
    """Entry of ``python -m mixloop.controller.tracking.drain_process REQUEST`` (a JSON object)."""
    os.environ.update(LIMITS)
    del os.environ["MLFLOW_TRACKING_URI"]
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the client prints belongs in the log, not in our answers

    def say(message: dict[str, object]) -> None:
        channel.write(json.dumps(message) + "\n")

    request = json.loads(sys.argv[1])
    alone = open_regular(Path(request["journal"]).with_name("mlflow.lock"), os.O_RDWR | os.O_CREAT)
    with os.fdopen(alone):
        # two drains at once would both look, find nothing, and make everything twice
        lock(alone, wait=True)
        code = drain(request, say)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""``mixloop sync``: everything MLflow has not got, now, whether or not a controller runs."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.contract import RunPaths
from mixloop.controller.config import load_config
from mixloop.controller.journal import Journal, JournalError, queries, records
from mixloop.controller.views import controller, open_run

TIMEOUT = 600.0  # seconds a controller that runs gets, and the most a drain may take
POLL_SECONDS = 0.2


def sync_run(target: Path) -> Json:
    """Drain the outbox: by the controller that runs here, else by ourselves.

    Returns:
        ``sent`` entries, those still ``waiting``, and the last ``error``.

    Raises:
        BadInput: no controller ever ran here, or tracking is off.
    """
    if not target.is_file():
        raise BadInput(f"{target}: give the run's run.yaml, which says where MLflow is")
    config = load_config(target)
    if not config.tracking.enabled:
        raise BadInput(f"{target}: tracking.enabled is false; there is nothing to tell MLflow")
    paths, journal = open_run(target)
    if journal is None:
        raise BadInput(f"{target}: no controller has run here, so there is nothing to tell")
    before = queries.waiting_entries(journal)
    holder = controller(journal)
    alive = holder is not None and holder.alive is not False
    wait = partial(_wait_for_controller, paths, journal, config.run.id, config.key())
    error = wait() if alive else _drain(config, paths)
    left = queries.waiting_entries(journal)
    return {"sent": before - left, "waiting": left, "error": error if left else None}


def _wait_for_controller(paths: RunPaths, journal: Journal, run: str, key: bytes | None) -> str:
    from mixloop.contract import requests
    from mixloop.controller.journal import timestamp

    last, lease = queries.newest_entry_number(journal), queries.lease(journal)
    fence = lease.fence if lease is not None else 0
    to = requests.Addressee(run, queries.uid(journal) or "", fence)
    requests.submit(paths.requests, requests.new_request("sync", timestamp()), to=to, key=key)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if not queries.waiting_entries(journal, until=last):
            return "new entries came meanwhile; the controller sends them"
        time.sleep(POLL_SECONDS)
    return "the controller did not get it through in time"


def _drain(config: Any, paths: RunPaths) -> str:
    """Our own drain, under the run's lock and the fence as it is: nobody is taken over."""
    from mixloop.controller.journal import take_lock

    lock = take_lock(paths.dir / "controller.lock")
    journal = Journal(paths.journal, create=True, key=config.key())
    try:
        try:
            journal.refuse_other_key()
        except JournalError as error:
            raise BadInput(str(error)) from None
        holder = queries.lease(journal)
        journal.fence = holder.fence if holder is not None else None
        uid = records.run_uid(journal)
        failure, resume = _drain_once(config, paths, journal, uid, 0)
        while resume:  # more than one drain may fail on: all of them are to be tried
            later, resume = _drain_once(config, paths, journal, uid, resume)
            failure = later or failure
        return failure
    finally:
        journal.close()
        lock.close()


def _drain_once(
    config: Any, paths: RunPaths, journal: Journal, uid: str, after: int
) -> tuple[str, int]:
    """One drain. Returns its last failure, and the entry that it could not go beyond, or 0."""
    from .drain_child import start_drain

    child = start_drain(config, paths, uid, after=after, timeout=TIMEOUT, clock=time.monotonic)
    failure: Json | None = None
    resume = 0
    try:
        while True:
            running, messages = child.running, child.messages()
            failure = records.drained(journal, messages) or failure
            resume = max([resume, *(message.get("resume", 0) for message in messages)])
            if not running:
                break
            time.sleep(POLL_SECONDS)
        if failure is not None:
            return ": ".join(filter(None, (failure["entry"], failure["error"]))), resume
        if child.exit_code:
            return child.killed or f"the MLflow child ended with status {child.exit_code}", 0
    finally:
        child.close()
    return "", resume

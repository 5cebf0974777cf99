"""What a person tells a running (or waiting) controller: pause, set, pin, approve, roll back.

Each command writes one request and, where a controller runs, waits for its answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixloop.common.errors import BadInput, suggest
from mixloop.common.files import unwritable
from mixloop.common.text import clean, tokens
from mixloop.controller import core, views

from .output import AsJson, Run, print_json

if TYPE_CHECKING:
    from mixloop.contract import Request, RunPaths, requests
    from mixloop.controller.core import RequestRow
    from mixloop.controller.journal import Journal

Id = Annotated[str, typer.Argument(metavar="ID", help="a decision, such as d-000003")]
Shares = Annotated[list[str], typer.Argument(metavar="SOURCE=SHARE…", help="such as code=0.2")]
Why = Annotated[str, typer.Option("--reason", help="why; it stays in the history")]
Wait = Annotated[float, typer.Option(min=0, help="seconds to wait for the controller's answer")]
Force = Annotated[bool, typer.Option(help="past the hard guards (never past the trainer's limits)")]

TIMEOUT = 60.0  # seconds to wait for an answer
POLL_SECONDS = 0.1


def pause(target: Run, reason: Why = "", wait: Wait = TIMEOUT, as_json: AsJson = False) -> None:
    """Decide nothing until `resume`; checkpoints are still scored."""
    _ask(target, "pause", wait, as_json, reason=reason)


def resume(target: Run, reason: Why = "", wait: Wait = TIMEOUT, as_json: AsJson = False) -> None:
    """Decide again, on the newest scored checkpoint first."""
    _ask(target, "resume", wait, as_json, reason=reason)


def set_(
    target: Run,
    shares: Shares,
    reason: Why = "",
    force: Force = False,
    wait: Wait = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Order a mixture. Sources not named share the rest as they do now."""
    _ask(target, "set", wait, as_json, weights=_shares(target, shares), reason=reason, force=force)


def pin(
    target: Run,
    shares: Shares,
    reason: Why = "",
    force: Force = False,
    wait: Wait = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Hold a source at a share, whatever the policy proposes."""
    _ask(target, "pin", wait, as_json, weights=_shares(target, shares), reason=reason, force=force)


def unpin(
    target: Run,
    sources: Annotated[list[str] | None, typer.Argument(metavar="[SOURCE…]")] = None,
    reason: Why = "",
    wait: Wait = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Let pinned sources go; without names, all. The mixture stays as it is."""
    _ask(target, "unpin", wait, as_json, sources=tuple(sources or ()), reason=reason)


def approve(
    target: Run, decision: Id, reason: Why = "", wait: Wait = TIMEOUT, as_json: AsJson = False
) -> None:
    """Let a proposal that waits for approval through; the guards look at it again."""
    _ask(target, "approve", wait, as_json, decision=decision, reason=reason)


def reject(
    target: Run, decision: Id, reason: Why = "", wait: Wait = TIMEOUT, as_json: AsJson = False
) -> None:
    """Turn a proposal that waits for approval down; the mixture stays."""
    _ask(target, "reject", wait, as_json, decision=decision, reason=reason)


def rollback(
    target: Run,
    decision: Id,
    reason: Why = "",
    force: Force = False,
    wait: Wait = TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Go back to the mixture before a decision. What was consumed stays in the ledger."""
    _ask(target, "rollback", wait, as_json, decision=decision, reason=reason, force=force)


def sync(target: Run, as_json: AsJson = False) -> None:
    """Tell MLflow everything it has not got yet."""
    from mixloop.controller.tracking import sync_run

    report = sync_run(target)
    if as_json:
        print_json(report)
    else:
        rest = f", {report['waiting']} still wait: {report['error']}" if report["waiting"] else ""
        typer.echo(f"{report['sent']} entries sent to MLflow{rest}")
    raise SystemExit(1 if report["waiting"] else 0)


def export(
    target: Run,
    out: Annotated[Path | None, typer.Option(help="file to write; default: print it")] = None,
    scale: Annotated[
        str | None, typer.Option(help="budget of the run that will use it, such as 11T")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The mixtures this run went through, as a `stages` policy for another run."""
    stages = views.export_run(target, scale)
    text = json.dumps(stages, indent=2) if as_json else views.export_text(stages)
    if out is None:
        typer.echo(text.rstrip())
    elif (problem := unwritable(out)) is not None:
        raise BadInput(f"--out: {out}: {problem}")
    else:
        out.write_text(text, encoding="utf-8")
        typer.echo(f"wrote {out}")


# -- asking ----------------------------------------------------------------------------------------


def _shares(target: Path, arguments: Sequence[str]) -> dict[str, float]:
    """``["code=0.2"]`` as shares.

    Raises:
        BadInput: naming what is no share, or no source of this run.
    """
    sources = _sources(target)
    shares: dict[str, float] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not equals or not 0 <= share <= 1:
            raise BadInput(
                f"{argument}: write SOURCE=SHARE with a share from 0 to 1, such as code=0.2"
            )
        if sources and name not in sources:
            mend = suggest(name, sources) or f" (sources: {', '.join(sources)})"
            raise BadInput(f"{name}: no source of this run{mend}")
        if name in shares:
            raise BadInput(f"{name}: given twice")
        shares[name] = share
    if sum(shares.values()) > 1 + 1e-6:
        raise BadInput(f"the shares sum to {sum(shares.values()):g}, more than 1")
    return shares


def _sources(target: Path) -> list[str]:
    from mixloop.contract import read_status
    from mixloop.controller.journal import queries

    paths, journal = views.open_run(target)
    status = read_status(paths.status).value
    if status is not None:
        return list(status.sources)
    return list(queries.initial_mixture(journal) or ()) if journal is not None else []


def _ask(target: Path, verb: Any, wait: float, as_json: bool, **fields: Any) -> None:
    """Write the request, wait for the answer, print it, end with the right status."""
    from mixloop.contract import requests
    from mixloop.controller.journal import timestamp

    paths, journal = views.open_run(target)
    _refuse_finished(target, paths, journal, verb)
    request, key = requests.new_request(verb, timestamp(), **fields), views.run_key(target)
    to = _addressee(paths, journal, signed=key is not None)
    try:
        file = requests.submit(paths.requests, request, to=to, key=key)
    except OSError as error:
        raise BadInput(f"{paths.requests}: not writable: {error.strerror or error}") from None
    answer = _answer(paths, journal, request, wait, file.name)
    if as_json:
        row = None if answer is None else asdict(answer)
        print_json({"request": request.id, "verb": verb, "answer": row})
    else:
        _print_answer(request, answer, _alive(journal))
    raise SystemExit(1 if answer is not None and answer.state == "refused" else 0)


def _refuse_finished(target: Path, paths: RunPaths, journal: Journal | None, verb: str) -> None:
    """What nobody will ever answer: the run has ended, and its controller with it."""
    from mixloop.contract import read_status
    from mixloop.controller.journal import queries

    status = read_status(paths.status).value
    last = queries.newest_event(journal, "started", "ended") if journal is not None else None
    gone = _alive(journal) is not True or (last is not None and last.kind == "ended")
    if status is not None and status.finished and gone:
        spent = f"{tokens(status.tokens)} of {tokens(status.budget)} tokens"
        raise BadInput(f"{target}: {verb}: training has ended after {spent}; nothing was asked")


def _answer(
    paths: RunPaths, journal: Journal | None, request: Request, wait: float, file: str
) -> RequestRow | None:
    """What the controller answered; None when none runs here, or it took too long."""
    from mixloop.controller.journal import queries

    deadline = time.monotonic() + wait
    while journal is not None and _alive(journal) is not False:
        row = queries.request(journal, request.id)
        if row is not None:
            return row
        if (paths.requests / "refused" / file).exists():
            raise BadInput(f"the controller did not take it: {_refusal(journal, file)}")
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    return None


def _addressee(paths: RunPaths, journal: Journal | None, *, signed: bool) -> requests.Addressee:
    from mixloop.contract import requests
    from mixloop.controller.journal import queries

    run = _run_id(paths, journal)
    if not signed:
        return requests.Addressee(run)
    uid = queries.uid(journal) if journal is not None else None
    lease = queries.lease(journal) if journal is not None else None
    if uid is None or lease is None:
        raise BadInput(
            f"{paths.dir}: no controller of this run has begun to take signed requests; start "
            "`mixloop control` (or `run`) first"
        )
    return requests.Addressee(run, uid, lease.fence)


def _run_id(paths: RunPaths, journal: Journal | None) -> str:
    from mixloop.contract import read_status
    from mixloop.controller.journal import queries

    run = queries.run_id(journal) if journal is not None else None
    if run is None and (status := read_status(paths.status).value) is not None:
        run = status.run
    return run or ""


def _refusal(journal: Journal, file: str) -> str:
    """Why a request's file was put aside."""
    from mixloop.controller.journal import queries

    details = [event.detail for event in queries.events(journal, "request-refused")]
    reasons = [detail["reason"] for detail in details if detail.get("file") == file]
    return clean(reasons[-1]) if reasons else "it is in requests/refused/"


def _alive(journal: Journal | None) -> bool | None:
    """Whether a controller runs: None where that can't be known from this machine."""
    controller = views.controller(journal)
    return False if controller is None else controller.alive


def _print_answer(request: Request, answer: RequestRow | None, alive: bool | None) -> None:
    if answer is None:
        why = "no controller runs here" if alive is False else "the controller has not answered yet"
        typer.echo(f"{why}: the request waits in requests/ ({request.id})")
        return
    decision = f" ({answer.decision})" if answer.decision else ""
    typer.echo(f"{clean(answer.answer['text'])}{decision}")
    if answer.answer.get("nearest"):
        typer.echo(f"the nearest legal mixture: {core.mixture(answer.answer['nearest'])}")
        typer.echo("take that, or --force")

"""What DESIGN promises of security (sections 4, 7, 10), one promise after another.

Promises tested elsewhere are named in docs/security.md beside their tests.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import pickle
import re
import shutil
import sqlite3
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.common import files
from mixloop.common.children import Child
from mixloop.common.errors import BadInput
from mixloop.common.files import canonical, digest, write_atomic
from mixloop.contract import (
    KeyFileError,
    Order,
    Rejection,
    is_signed,
    read_holds,
    read_manifest,
    read_order,
    read_schedule,
    read_status,
    requests,
    signing,
    write_order,
)
from mixloop.contract.orders import order_json
from mixloop.contract.signing import read_key
from mixloop.controller.config import load_config
from mixloop.controller.core import DecisionRow
from mixloop.controller.decisions import read_answer
from mixloop.controller.journal import queries, take_lock, tamper_seal, timestamp
from mixloop.controller.journal.packing import unpack
from mixloop.controller.journal.schema import TABLES
from mixloop.controller.loop import daemon
from mixloop.controller.report import html, write_report
from mixloop.controller.service.service import start_controller
from mixloop.evals import Scorecard
from mixloop.trainer.config import JobError
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.run import fork_run

ROOT = Path(__file__).parents[2]
KEY = b"0123456789abcdef-the-key-itself"
OTHER = b"fedcba9876543210-another-one"
HOSTILE = "\x1b]0;o\x07<script>alert(1)</script>\"'><img src=javascript:x onerror=y>\x9b31m\r\n"
HOSTILE += "\u202egnp.\u2066exe\u200b\ufeff\u2028\u3164\U000e0041"
ORDER = Order("r", 3, 7, {"web": 0.6, "code": 0.4}, decision="d-000001", reason="why")


def make_key(folder: Path, key: bytes = KEY, name: str = "key") -> Path:
    path = folder / name
    path.write_bytes(key + b"\n")
    path.chmod(0o600)
    return path


def read(path: Path, key: bytes | None) -> Order | Rejection | None:
    return read_order(path, run="r", sources=("web", "code"), after=(0, 0), key=key)


# --- the HMAC option --------------------------------------------------------------------------


def test_an_order_needs_the_key_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "mixture.json"
    write_order(path, ORDER, KEY)
    assert read(path, KEY) == ORDER
    assert read(path, None) == ORDER, "a trainer without a key asks for none"
    refused = read(path, OTHER)
    assert isinstance(refused, Rejection)
    assert "another key" in refused.reason
    assert refused.generation == 7, "so that the controller knows which of its orders it was"
    write_order(path, ORDER)
    refused = read(path, KEY)
    assert isinstance(refused, Rejection)
    assert "not signed" in refused.reason


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 8},
        {"weights": {"web": 0.5, "code": 0.5}},
        {"then": [{"from_tokens": 9, "weights": {"web": 1.0}}]},
        {"hmac": None},
        {"hmac": "hmac-sha256:" + "0" * 64},
        {"hmac": "\u00e9"},
        {"schema_note": "also what we don't know is signed"},
    ],
)
def test_nothing_of_a_signed_order_can_be_changed(tmp_path: Path, change: dict[str, Any]) -> None:
    body = order_json(ORDER, KEY) | change
    del body["checksum"]
    body["checksum"] = digest(canonical(body))
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(body))
    assert isinstance(read(path, KEY), Rejection)


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []

    def compare(*both: Any) -> bool:
        compared.append(both)
        return real(*both)

    real = signing.hmac.compare_digest
    monkeypatch.setattr(signing.hmac, "compare_digest", compare)
    assert is_signed(KEY, order_json(ORDER, KEY))
    assert len(compared) == 1


def _link(path: Path) -> None:
    make_key(path.parent, name="real")
    path.symlink_to(path.parent / "real")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: make_key(path.parent).chmod(0o604), "chmod 600"),
        (lambda path: make_key(path.parent).chmod(0o620), "chmod 600"),
        (lambda path: make_key(path.parent, b"short"), "under 16 bytes"),
        (lambda path: make_key(path.parent, b"x" * 5000), "over 4096 bytes"),
        (_link, "a symbolic link"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: os.mkfifo(path, 0o600), "a FIFO"),
    ],
)
def test_a_key_file_that_is_none_is_told(
    tmp_path: Path, played_run: Any, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "key")
    with pytest.raises(KeyFileError, match=said):
        read_key(tmp_path / "key")
    path = played_run.make_run(tmp_path, trainer={"sequence_length": 10, "key_file": "key"})
    with pytest.raises(BadInput, match=said) as raised:
        load_config(path).key()
    assert "trainer.key_file: " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert KEY.decode() not in str(raised.value)


@pytest.mark.parametrize("mode", [0o770, 0o757, 0o777])
@pytest.mark.parametrize("above", [0, 1])
def test_a_key_that_others_could_replace_is_none(tmp_path: Path, mode: int, above: int) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True, mode=0o700)
    key = folder / "key"
    key.touch(0o600)
    key.write_bytes(KEY)
    assert read_key(key) == KEY
    folders = (folder, folder.parent)
    folders[above].chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:o}, lets others put another there; chmod"):
        read_key(key)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(KeyFileError, match="lets others put another there"):
        read_key(tmp_path / "link" / "key")
    folders[above].chmod(mode | 0o1000)  # sticky, as /tmp
    assert read_key(key) == KEY


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_key_of_somebody_else_is_none(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(KEY)
    os.chown(key, 12345, 12345)
    with pytest.raises(KeyFileError, match="it is user 12345's, who may read and change it"):
        read_key(key)
    os.chown(key, 0, 0)
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(KeyFileError, match="is user 12345's, who could put another there"):
        read_key(key)


def test_a_key_is_judged_by_the_file_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    for path, mode in ((key, 0o600), (other, 0o644)):
        path.touch(mode)
        path.write_bytes(KEY)
    opened = os.open

    def swapped(path: Any, *args: Any, **options: Any) -> int:
        if Path(path) == key:
            other.replace(key)
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(KeyFileError, match="mode 644 lets others at it"):
        read_key(key)


def test_a_wrong_key_file_ends_a_command_with_code_2(
    tmp_path: Path, played_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mixloop.cli import app

    make_key(tmp_path).chmod(0o644)
    path = played_run.make_run(tmp_path, trainer={"sequence_length": 10, "key_file": "key"})
    monkeypatch.setattr(sys, "argv", ["mixloop", "check", str(path)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "chmod 600" in line
    with MixtureLoader.from_config(path) as loader, pytest.raises(JobError, match="chmod 600"):
        next(loader)


def test_a_trainer_with_a_key_keeps_its_mixture_and_status_says_why(
    tmp_path: Path, played_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = played_run.make_run(tmp_path)
    folder = load_config(path).run.dir
    folder.mkdir()
    monkeypatch.setenv(signing.KEY_FILE, str(make_key(tmp_path)))
    asked = {"web": 0.5, "code": 0.3, "maths": 0.2}
    write_order(folder / "mixture.json", Order("r", 1, 1, asked))
    with MixtureLoader.from_config(path, status_every=2) as loader:

        def train(until: Callable[[], bool]) -> None:
            while not until():
                next(loader)
                loader.report(loss=1.0)
                time.sleep(0.01)

        def beat() -> Any:
            return read_status(folder / "status.json").value

        train(lambda: beat() is not None and bool(beat().rejected))
        assert loader.weights["code"] == pytest.approx(0.1)
        assert "not signed" in beat().rejected[0].reason
        shown = CliRunner().invoke(app, ["status", str(folder)])
        assert "not signed, and this run has a key" in shown.output
        uid = read_schedule(folder / "schedule.jsonl").uid
        write_order(folder / "mixture.json", Order("r", 1, 2, asked, uid=uid), KEY)
        train(lambda: loader.weights["code"] > 0.2)
    accepted = json.loads((folder / "accepted.json").read_bytes())
    assert is_signed(KEY, accepted), "after a restart only what was signed is gone on with"


def test_the_controller_signs_and_the_key_stays_in_its_file(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path)
    section = {"sequence_length": 10, "micro_batch": 8, "poll_every": 2, "key_file": "key"}
    run = play(trainer=section)
    run.train(8)
    assert read_order(
        run.paths.mixture, run="r", sources=("web", "code", "maths"), after=(0, 0), key=KEY
    )
    body = json.loads(run.paths.mixture.read_bytes())
    del body["hmac"], body["checksum"]
    stripped = json.dumps({**body, "checksum": digest(canonical(body))}).encode()
    run.paths.mixture.write_bytes(stripped)
    run.settle()
    assert is_signed(KEY, json.loads(run.paths.mixture.read_bytes())), "signed again"
    result = run.tell("set", "code=0.2", "--reason", "signed")
    assert result.exit_code == 0, result.output
    assert run.answer()["state"] == "done"
    report = CliRunner().invoke(app, ["report", str(run.path)])
    assert report.exit_code == 0
    held = [p for p in run.paths.dir.rglob("*") if p.is_file()]
    assert len(held) > 5
    for path in held:
        assert KEY not in path.read_bytes(), path
    assert not any(KEY.decode() in line for line in run.said)


def test_requests_need_the_key_where_there_is_one(play: Any, tmp_path: Path) -> None:
    make_key(tmp_path)
    run = play(policy={"use": "static"}, trainer={"sequence_length": 10, "key_file": "key"})
    folder = run.paths.requests

    def refused() -> str:
        run.settle()
        event = queries.newest_event(run.journal, "request-refused")
        assert event is not None
        return str(event.detail["reason"])

    def pause(key: bytes | None, **changes: Any) -> None:
        to = requests.Addressee("r", queries.uid(run.journal) or "", run.journal.fence or 0)
        request = requests.new_request("pause", timestamp())
        requests.submit(folder, request, to=replace(to, **changes), key=key)

    pause(None)
    assert "not signed" in refused()
    pause(OTHER)
    assert "another key" in refused()
    pause(KEY, run="other")
    assert "another run" in refused()
    pause(KEY, uid="0" * 32)
    assert "another journal" in refused()
    assert not queries.paused(run.journal)
    result = CliRunner().invoke(app, ["pause", str(run.paths.dir), "--wait", "0"])
    assert result.exit_code == 0, "a run folder names no key, and the environment has none"
    assert "not signed" in refused()
    assert run.tell("pause").exit_code == 0
    assert queries.paused(run.journal)


# --- what was signed counts once, and in one run ------------------------------------------------


def test_a_signed_order_is_for_one_run_of_its_id(tmp_path: Path) -> None:
    path = tmp_path / "mixture.json"
    ours = replace(ORDER, uid="a" * 32)
    write_order(path, ours, KEY)

    def read_by(uid: str | None, key: bytes | None = KEY) -> Order | Rejection | None:
        return read_order(path, run="r", sources=("web", "code"), after=(0, 0), key=key, uid=uid)

    assert read_by("a" * 32) == read_by(None) == read_by("b" * 32, None) == ours
    for uid in ("b" * 32, ""):
        refused = read_by(uid)
        assert isinstance(refused, Rejection)
        assert "another run of this id" in refused.reason
    write_order(path, ORDER, KEY)
    assert isinstance(read_by("a" * 32), Rejection), "signed before, or by an older controller"
    assert read_by("") == ORDER, "a run from before signed orders named one"


def test_a_run_keeps_its_uid_and_a_fork_has_its_own(
    tmp_path: Path, played_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = played_run.make_run(tmp_path)
    folder = load_config(path).run.dir

    def begin() -> str:
        with MixtureLoader.from_config(path, from_scratch=True) as loader:
            next(loader)
        return read_schedule(folder / "schedule.jsonl").uid

    assert begin() == "", "without a key nothing needs one"
    monkeypatch.setenv(signing.KEY_FILE, str(make_key(tmp_path)))
    uid = begin()
    assert len(uid) == 32
    assert begin() == uid
    fork_run(folder, tmp_path / "fork", "r", step=0)
    forked = read_schedule(tmp_path / "fork" / "schedule.jsonl").uid
    assert len(forked) == 32
    assert forked != uid


def keyed(play: Any, tmp_path: Path) -> Any:
    """A run with a key, in which a forced mixture was in force and was taken back."""
    make_key(tmp_path)
    section = {"sequence_length": 10, "micro_batch": 8, "poll_every": 2, "key_file": "key"}
    evals = {"benchmarks": {"gsm8k": {"data": "packages"}}, "every": 24_000}  # nothing to decide
    run = play(policy={"use": "static"}, trainer=section, evals=evals)
    run.train(1)
    for shares in ("code=0.55", "code=0.10"):
        run.before = run.paths.journal.read_bytes()  # as a thief would have it
        assert run.tell("set", shares, "--force").exit_code == 0
        run.train(4)
    assert run.in_force()["code"] == pytest.approx(0.1, abs=1e-6)
    shutil.copy(run.paths.mixture, run.paths.accepted)  # as trainers do
    run.controller.close()
    return run


def start_again(run: Any) -> list[str]:
    """Another controller, and what the owner hears of it."""
    said: list[str] = []
    run.controller = daemon.Controller(load_config(run.path), run.path.parent, said.append)
    run.journal = run.controller.journal
    run.settle()
    return said


@pytest.mark.parametrize("journal", ["lost", "older"])
def test_after_a_lost_journal_nothing_signed_before_counts(
    play: Any, tmp_path: Path, journal: str
) -> None:
    """A withdrawn `set --force` came into force again: nobody knew that it had been taken."""
    run = keyed(play, tmp_path)
    taken = sorted((run.paths.requests / "taken").iterdir())
    if journal == "lost":
        run.paths.journal.unlink()
    else:
        run.paths.journal.write_bytes(run.before)  # from when code=0.55 was in force
    for old in taken:
        shutil.copy(old, run.paths.requests / old.name)
    beat = json.loads(run.paths.status.read_bytes())
    beat["in_force"]["weights"] = {"web": 0.2, "code": 0.7, "maths": 0.1}  # nobody's word
    run.paths.status.write_text(json.dumps(beat))
    held = run.paths.mixture.read_bytes()
    said = start_again(run)
    assert run.paths.mixture.read_bytes() == held, "the trainer goes on as it is"
    assert any("requests signed before are refused" in line for line in said)
    refused = queries.events(run.journal, "request-refused")
    assert len(refused) == len(taken) == 2
    assert all("ask again" in event.detail["reason"] for event in refused)
    run.train(4)
    assert run.in_force()["code"] == pytest.approx(0.1, abs=1e-6)
    assert run.tell("set", "code=0.3").exit_code == 0, "what is asked now is done"
    run.train(4)
    assert run.in_force() == pytest.approx({"web": 0.56, "code": 0.3, "maths": 0.14}, abs=1e-3)


WISH = json.dumps({"web": 0.05, "code": 0.9, "maths": 0.05})
THEN = json.dumps([[2_000, json.loads(WISH)], [24_000, json.loads(WISH)]])
NEWEST = "generation = (SELECT MAX(generation) FROM orders)"


def an_order(generation: str) -> str:
    """As if a controller had decided it: who can write into the journal can copy all of that."""
    columns = ", ".join(c for c in DECISION if c not in ("seq", "id", "generation"))
    return (
        f"INSERT INTO decisions (id, generation, {columns}) SELECT 'd-000777', {generation}, "
        f"{columns} FROM decisions WHERE generation NOT NULL LIMIT 1;"
        f"INSERT INTO orders (generation, decision, policy, reason, weights, plan, issued_at) "
        f"SELECT {generation}, 'd-000777', policy, reason, '{WISH}', '[]', issued_at FROM orders "
        f"WHERE {NEWEST};"
    )


@pytest.mark.parametrize("first", ["the controller", "the trainer"])
def test_a_new_key_is_a_restart_of_both(tmp_path: Path, played_run: Any, first: str) -> None:
    make_key(tmp_path)
    trainer = {"sequence_length": 10, "micro_batch": 8, "poll_every": 2, "status_every": 2}
    path = played_run.make_run(
        tmp_path, budget=400_000, policy={"use": "static"}, evals={"every": 400_000},
        trainer={**trainer, "key_file": "key"},
    )  # fmt: skip
    folder = load_config(path).run.dir
    said: list[str] = []
    loader = MixtureLoader.from_config(path)
    next(loader)
    controller = start_controller(load_config(path), tmp_path, said.append)

    def until(reached: Callable[[], bool], what: str) -> None:
        for _ in range(2000):
            if reached():
                return
            next(loader)
            loader.report(loss=1.0)
            controller.step()
            time.sleep(0.002)
        raise AssertionError(f"{what}: {said[-5:]}")

    def rejected() -> list[str]:
        status = read_status(folder / "status.json").value
        return [entry.reason for entry in status.rejected] if status is not None else []

    def ask(share: float) -> None:
        command = ["set", str(path), f"code={share}", "--wait", "0"]
        assert CliRunner().invoke(app, command).exit_code == 0

    def restart_trainer() -> MixtureLoader:
        state = loader.state_dict()
        loader.close()
        again = MixtureLoader.from_config(path)
        again.load_state_dict(state)
        return again

    def has(share: float) -> bool:
        return loader.weights["code"] == pytest.approx(share, abs=1e-6)

    ask(0.3)
    until(lambda: has(0.3), "the old key")
    make_key(tmp_path, OTHER)
    if first == "the controller":
        controller.close()
        controller = start_controller(load_config(path), tmp_path, said.append)
        assert any("sealed with another key than this" in line for line in said)
        ask(0.2)
        until(lambda: any("another key" in reason for reason in rejected()), "refused")
        assert has(0.3)
        loader = restart_trainer()
    else:
        loader = restart_trainer()
        until(lambda: any("plans for later" in reason for reason in rejected()), "told")
        ask(0.2)
        until(lambda: any("another key" in line for line in said), "refused")
        assert has(0.3)
        controller.close()
        controller = start_controller(load_config(path), tmp_path, said.append)
    ask(0.25)
    until(lambda: has(0.25), "the new key")
    controller.close()
    loader.close()


DECISION = [field.name for field in fields(DecisionRow)]
FORGED = {
    "an order": an_order("(SELECT MAX(generation) FROM orders) + 1"),
    "an order far ahead": an_order(str(2**60)),
    "weights": f"UPDATE orders SET weights = '{WISH}' WHERE {NEWEST}",
    "a plan": f"UPDATE orders SET plan = '{THEN}' WHERE {NEWEST}",
    "a pin": """INSERT OR REPLACE INTO meta VALUES ('pins', '{"code": 0.9}')""",
    "the start": f"INSERT OR REPLACE INTO meta VALUES ('initial', '{WISH}'); DELETE FROM orders",
    "a decision": f"UPDATE decisions SET weights_before = '{WISH}'",
    "garbage": "UPDATE events SET detail = 7",
}


QUICK = {
    ("an order", "at rest"), ("weights", "running"), ("a plan", "at rest"), ("garbage", "running"),
}  # fmt: skip


def write_into(journal: Path, statements: str) -> None:
    """What somebody without the key can do: rows, and the seal that these have without it."""
    with sqlite3.connect(journal) as db:
        db.executescript(statements)
        db.execute("UPDATE lease SET seal = ?", (tamper_seal.whole(db, TABLES),))
    db.close()


@pytest.mark.parametrize(
    ("forged", "when"),
    [
        pytest.param(forged, when, marks=() if (forged, when) in QUICK else pytest.mark.soak)
        for forged, when in itertools.product(FORGED, ("at rest", "running"))
    ],
)
def test_nothing_is_signed_that_others_wrote_into_the_journal(
    play: Any, tmp_path: Path, forged: str, when: str
) -> None:
    """Rows of nobody came into force: the controller took them for its own and signed them."""
    run = keyed(play, tmp_path)
    said = start_again(run) if when == "running" else []
    write_into(run.paths.journal, FORGED[forged])
    said += start_again(run) if when == "at rest" else []
    run.controller.say = said.append
    run.train(3)
    held = read_order(run.paths.mixture, run="r", sources=run.trainer.names, after=(0, 0), key=KEY)
    assert isinstance(held, Order)
    assert held.weights["code"] == pytest.approx(0.1, abs=1e-6)
    assert not held.then
    assert any("nothing that it holds from before is signed" in line for line in said), said
    result = run.tell("rollback", "d-000001")
    assert "was made before the journal" in run.answer()["answer"]["text"], result.output
    assert run.tell("set", "web=0.6").exit_code == 0
    run.train(4)
    assert run.in_force()["web"] == pytest.approx(0.6, abs=1e-3), "what is asked now is done"
    assert run.in_force()["code"] < 0.2, "and the others share the rest as they did"
    run.controller.close()
    assert start_again(run) == [], "told once"


def test_a_request_waits_for_the_next_controller(play: Any, tmp_path: Path) -> None:
    run = keyed(play, tmp_path)
    result = CliRunner().invoke(app, ["set", str(run.path), "code=0.2", "--wait", "0"])
    assert result.exit_code == 0, result.output
    start_again(run)
    run.train(4)
    assert run.in_force()["code"] == pytest.approx(0.2, abs=1e-6)


def test_a_signed_request_needs_a_journal_to_be_for(tmp_path: Path, played_run: Any) -> None:
    make_key(tmp_path)
    section = {"sequence_length": 10, "micro_batch": 8, "poll_every": 2, "key_file": "key"}
    path = played_run.make_run(tmp_path, trainer=section)
    played_run.FileTrainer(load_config(path)).advance()
    result = CliRunner().invoke(app, ["pause", str(path), "--wait", "0"])
    assert isinstance(result.exception, BadInput)
    assert "start `mixloop control`" in str(result.exception)


# --- O_EXCL, O_NOFOLLOW, and no waiting -------------------------------------------------------


def _card(path: Path) -> None:
    Scorecard(checkpoint="c", benchmarks={}, seconds=1.0, settings_digest="d").write(path)


@pytest.mark.parametrize("write", [lambda path: write_atomic(path, b"new"), _card])
def test_a_link_at_the_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 12)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = tmp_path / f".file.json.{os.getpid()}.{'0' * 12}.tmp"
    for target in (victim, tmp_path / "absent"):
        planted.symlink_to(target)
        with pytest.raises(FileExistsError):
            write(tmp_path / "file.json")
        planted.unlink(missing_ok=True)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "absent").exists()
    write(tmp_path / "file.json")
    assert (tmp_path / "file.json").is_file()


def test_a_link_at_the_target_is_replaced_and_not_written_through(
    play: Any, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = play()
    run.train(4)
    (run.paths.dir / "report.html").symlink_to(victim)
    assert not write_report(run.path, None).is_symlink()
    (tmp_path / "lock").symlink_to(victim)
    with pytest.raises(BadInput, match="a symbolic link"):
        take_lock(tmp_path / "lock")
    assert victim.read_text() == "precious"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "look",
    [
        lambda path: read_status(path).value,
        lambda path: read_order(path, run="r", sources=(), after=(0, 0)),
        lambda path: read_holds(path).value,
        lambda path: read_manifest(path.parent).value,
        read_schedule,
        Scorecard.read,
        lambda path: requests.read(path, frozenset({os.getuid()})),
    ],
)
def test_a_fifo_is_not_waited_for(tmp_path: Path, look: Callable[[Path], Any]) -> None:
    path = tmp_path / "manifest.json"
    os.mkfifo(path)
    try:
        answer = look(path)
    except OSError:
        return
    assert answer is None or isinstance(answer, Rejection)


@pytest.mark.timeout(60)
def test_a_fifo_among_the_requests_does_not_stop_the_daemon(play: Any) -> None:
    """Its verb was looked up by reading whatever lay there, for as long as it took."""
    run = play(policy={"use": "static"})
    run.controller.observer.news.status = None
    run.paths.status.unlink()  # only before the first heartbeat are the files looked into
    run.paths.requests.mkdir()
    os.mkfifo(run.paths.requests / f"{1:013d}-r-{0:012x}.json")
    (run.paths.requests / f"{2:013d}-r-{1:012x}.json").write_bytes(b"[" * 100_000)
    run.settle()
    assert len(list((run.paths.requests / "refused").iterdir())) == 2


# --- numbers, nesting, anchors ----------------------------------------------------------------


def test_a_number_without_end_in_a_status_is_no_news(play: Any) -> None:
    run = play(policy={"use": "static"})
    valid = run.paths.status.read_text()
    for key in ("step", "tokens_per_second"):
        body = json.loads(valid) | {key: 10**400}
        run.paths.status.write_text(json.dumps(body))
        assert read_status(run.paths.status).value is None
        run.settle()


def test_half_a_surrogate_pair_in_the_journal_is_shown_as_something_else(play: Any) -> None:
    run = play()
    run.train(6)
    run.controller.close()
    with sqlite3.connect(run.paths.journal) as db:
        db.execute("UPDATE decisions SET evidence = ?", (json.dumps({"a": "\ud800"}),))
    db.close()
    for command in (["explain", "1"], ["explain", "1", "--json"], ["report", "--json"]):
        done = CliRunner().invoke(app, [command[0], str(run.paths.dir), *command[1:]])
        assert done.exit_code == 0, (command, done.exception)


def test_a_share_without_end_in_a_request_is_refused_once(play: Any) -> None:
    """The comparison with infinity failed, the file stayed, and so did the daemon."""
    run = play(policy={"use": "static"})
    request = requests.new_request("set", timestamp(), weights={"code": 10**400})
    requests.submit(run.paths.requests, request)
    run.settle()
    assert requests.waiting(run.paths.requests) == []
    assert any("no share from 0 to 1" in line for line in run.said)


def test_yaml_that_is_nested_or_multiplied_without_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for text in ("[" * 1500, '{"a":' * 1000, f"budget: {'9' * 5000}", bomb + "budget: *i\n"):
        path.write_text(text)
        with pytest.raises(BadInput) as raised:
            load_config(path)
        assert len(str(raised.value)) < 2000
        with pytest.raises(JobError):
            MixtureLoader.from_config(path)


def test_a_journal_with_a_damaged_row_is_told(play: Any) -> None:
    run = play()
    run.train(6)
    run.controller.close()
    for damage in ("evidence = '{'", "weights_before = '[1]'", "tokens = 'x'", "plan = '[[1]]'"):
        with sqlite3.connect(run.paths.journal) as db:
            before = db.execute("SELECT evidence, weights_before, tokens, plan FROM decisions")
            kept = before.fetchall()[0]
            db.execute(f"UPDATE decisions SET {damage}")
        result = CliRunner().invoke(app, ["explain", str(run.paths.dir), "1"])
        assert isinstance(result.exception, BadInput), (damage, result.output, result.exception)
        assert re.search("can't be (read|shown) whole", str(result.exception))
        with sqlite3.connect(run.paths.journal) as db:
            db.execute(
                "UPDATE decisions SET evidence = ?, weights_before = ?, tokens = ?, plan = ?", kept
            )
        db.close()


# --- safetensors only, no code from a checkpoint ----------------------------------------------


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self._marker),))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can be loaded, weights in safetensors."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("saved")
    raw = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, "<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=2, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def test_a_pickle_is_never_loaded(saved: Path, tmp_path: Path) -> None:
    import shutil

    from mixloop.controller.config.checkpoint_layouts import Layout
    from mixloop.evals.checkpoints import CheckpointError
    from mixloop.evals.engine import load_checkpoint

    folder = tmp_path / "checkpoint-10"
    shutil.copytree(saved, folder)
    assert load_checkpoint(folder).max_length == 16
    marker = tmp_path / "was-run"
    for name in ("pytorch_model.bin", "trainer.pt", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(_Bomb(marker)))
    load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_checkpoint(folder)
    assert Layout("hf-trainer", tmp_path).manifest("checkpoint-10") is None
    assert not marker.exists()


def test_code_in_a_checkpoint_is_never_run(saved: Path, tmp_path: Path) -> None:
    import shutil

    from mixloop.evals.checkpoints import CheckpointError
    from mixloop.evals.engine import load_checkpoint

    folder = tmp_path / "step-00000010"
    shutil.copytree(saved, folder)
    marker = tmp_path / "was-run"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "asked",
    [
        {"_attn_implementation": "someone/evil-attention"},
        {"attn_implementation": "kernels-community/flash-attn3:evil"},
        {"_attn_implementation_internal": "someone/evil-attention"},
        {"attn_implementation": "flash_attention_2", "experts_implementation": "deepgemm"},
        {"_attn_implementation": {"": "someone/evil"}, "_experts_implementation": "someone/evil"},
    ],
)
def test_a_checkpoint_names_no_kernels(saved: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    import shutil

    from mixloop.evals.engine import load_checkpoint
    from mixloop.trainer.reference.model import _load

    folder = tmp_path / "step-00000010"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | asked))
    model = load_checkpoint(folder).model
    assert model.config._attn_implementation in {"sdpa", "eager", "mixloop"}
    shape = SimpleNamespace(sequence_length=8), folder, SimpleNamespace(vocab_size=1)
    assert _load(*shape).config._attn_implementation == "sdpa"  # type: ignore[arg-type]


# --- what is shown ----------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.wrong: list[object] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "form", "base"):
            self.wrong.append(tag)
        for key, value in attrs:
            asks = key in ("src", "href", "action", "xlink:href", "formaction")
            if key.startswith("on") or (asks and not str(value).startswith("data:")):
                self.wrong.append((tag, key, value))


def _poison(value: Any) -> Any:
    """Every text in a JSON value made hostile, names of things included."""
    if isinstance(value, dict):
        return {k: _poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_poison(v) for v in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.fixture
def poisoned(play: Any) -> Any:
    """A run in whose journal and status every text that nothing is looked up by is hostile."""
    run = play()
    run.train(10)
    run.controller.close()
    free = {
        "decisions": ("verdict", "policy", "reason", "decided_at", "scored_at", "policy_digest"),
        "orders": ("reason", "policy", "applied_at", "decision"),
        "events": ("at",),
        "evaluations": ("finished_at", "started_at"),
    }
    with sqlite3.connect(run.paths.journal) as db:
        for table, columns in free.items():
            for column in columns:
                db.execute(
                    f"UPDATE {table} SET {column} = ? WHERE {column} IS NOT NULL", (HOSTILE,)
                )
        for seq, guards in db.execute("SELECT seq, guards FROM decisions").fetchall():
            new = json.dumps({HOSTILE: HOSTILE, "conditions": [{HOSTILE: [HOSTILE]}]})
            noted = json.dumps(_poison(unpack(guards)))
            db.execute(
                "UPDATE decisions SET evidence = ?, guards = ? WHERE seq = ?", (new, noted, seq)
            )
        for table, column, name in (
            ("orders", "weights", "ma<b>\x1b[2J"),
            ("decisions", "weights_after", "<script>\x1b[2J"),
        ):
            rows = db.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
            for row, weights in rows:
                named = {name if n == "maths" else n: w for n, w in unpack(weights).items()}
                db.execute(
                    f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (json.dumps(named), row)
                )
        db.execute(
            "INSERT INTO events (at, fence, kind, detail) VALUES ('now', 1, 'trouble', ?)",
            (json.dumps({"error": HOSTILE}),),
        )
        db.execute(
            "INSERT INTO approvals VALUES ('d-000001', 'approved', ?, ?, ?, ?, ?)", (HOSTILE,) * 5
        )
        db.execute(
            "INSERT INTO assessments VALUES ('a', 'd-000001', ?, ?, ?, ?, ?)",
            (HOSTILE, json.dumps(HOSTILE), HOSTILE, HOSTILE, HOSTILE),
        )
    db.close()
    beat = json.loads(run.paths.status.read_text())
    hostile = {"reason": HOSTILE, "digest": HOSTILE}
    beat |= {"host": HOSTILE, "run": HOSTILE, "rejected": [hostile]}
    beat["health"] = {"nan_steps": 1, "note": HOSTILE}
    beat["sources"][HOSTILE] = beat["sources"]["maths"]
    run.paths.status.write_text(json.dumps(beat))
    return run


def unseen(text: str) -> set[str]:
    """What a reader can't see, and what turns text round."""
    kinds = {"Cf", "Cs", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in kinds or c == "\u3164"}


def test_json_says_the_same_and_shows_all_of_it(poisoned: Any) -> None:
    done = CliRunner().invoke(app, ["history", str(poisoned.paths.dir), "--json"])
    assert done.exit_code == 0, done.exception
    assert not unseen(done.output)
    assert not {c for c in done.output if 127 <= ord(c) < 160}
    assert HOSTILE in texts(json.loads(done.output))


def texts(value: Any) -> set[str]:
    """Every text in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(texts, inner), {value} if isinstance(value, str) else set())


def test_no_text_drives_the_terminal(poisoned: Any) -> None:
    for command in (["status"], ["history"], ["explain"]):
        more = ["1"] if command == ["explain"] else []
        done = CliRunner().invoke(app, [*command, str(poisoned.paths.dir), *more])
        assert done.exit_code == 0, done.exception
        assert "alert(1)" in done.output, "it is shown, as text"
        controls = {c for c in done.output if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160}
        assert not controls, (command, controls)
        assert not unseen(done.output), command


def test_no_text_runs_in_the_page(poisoned: Any, tmp_path: Path) -> None:
    text = write_report(poisoned.paths.dir, tmp_path / "page.html").read_text()
    assert "alert(1)" in text
    assert Page(text).wrong == []
    assert not {c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160}
    assert not unseen(text)


def test_every_page_comes_with_the_content_policy(tmp_path: Path) -> None:
    assert html.POLICY.startswith("default-src 'none'")
    assert "script" not in html.POLICY
    body = '<p title="{{ text }}">{{ text }}</p>'
    (tmp_path / "page.html").write_text(
        '{% extends "base.html" %}{% block body %}' + body + "{% endblock %}"
    )
    text = html.render(tmp_path / "page.html", HOSTILE, text=HOSTILE)
    assert f'<meta http-equiv="Content-Security-Policy" content="{html.POLICY}">' in text
    assert Page(text).wrong == []
    base = ROOT / "controller" / "report" / "base.html"
    templates = [(str(path), path.read_text()) for path in ROOT.glob("[a-z]*/*/*.html")]
    for name, source in [*_sources(), *templates]:
        assert "<!doctype" not in source.lower() or name == str(base), name
        assert "| safe" not in source, name


def test_what_the_daemon_says_is_cleaned(
    played_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mixloop.cli import app
    from mixloop.controller import service

    def say_it(path: Path, say: Callable[[str], None], port: int | None) -> int:
        say(HOSTILE)
        raise BadInput(HOSTILE)

    monkeypatch.setattr(service, "control_run", say_it)
    monkeypatch.setattr(sys, "argv", ["mixloop", "control", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    for stream in (shown.out, shown.err):
        assert "alert(1)" in stream
        assert not unseen(stream)
        assert not {c for c in stream if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160}


# --- no shell ---------------------------------------------------------------------------------


def _sources() -> list[tuple[str, str]]:
    rooms = ("controller", "evals", "policies", "trainer")
    paths = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(paths) > 100
    return [(str(path), path.read_text("utf-8")) for path in paths]


def test_nothing_is_run_by_a_shell() -> None:
    shells = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"}
    for name, source in _sources():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            shell = [k.value for k in node.keywords if k.arg == "shell"]
            assert not any(not isinstance(v, ast.Constant) or v.value for v in shell), name
            called = node.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                module = called.value.id in ("os", "subprocess", "asyncio", "commands")
                assert not (module and called.attr in shells), (name, called.attr)


def test_a_launchers_arguments_arrive_as_they_were_written(tmp_path: Path) -> None:
    from mixloop.evals import EvalSettings
    from mixloop.evals.workers import Evaluator

    heard = tmp_path / "heard.json"
    word = f"a b; touch {tmp_path}/x $(touch {tmp_path}/y) `z` | > & * \"'\\ ~"
    program = f"import json, sys; open({str(heard)!r}, 'w').write(json.dumps(sys.argv[1:]))"
    settings = EvalSettings.model_validate(
        {
            "launcher": [sys.executable, "-c", program, word, "{command}"],
            "benchmarks": {"gsm8k": {}},
        }
    )
    evaluator = Evaluator(settings, tmp_path / "log")
    try:
        evaluator.start(tmp_path, tmp_path / "card.json")
        deadline = time.monotonic() + 20
        while not heard.exists() or not heard.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        evaluator.stop()
    assert json.loads(heard.read_bytes())[0] == word
    assert {p.name for p in tmp_path.iterdir()} <= {"heard.json", "log"}


# --- the policy's child -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "timeout", "said"),
    [
        ("b = bytearray(4 * 2**30)", 60.0, "MemoryError"),
        ("while True: pass", 4.0, "no answer within 4 seconds"),
        ("import os; os._exit(3)", 60.0, "no answer"),
        ("raise SystemExit(0)", 60.0, "SystemExit"),
    ],
)
def test_a_policy_has_limits(tmp_path: Path, body: str, timeout: float, said: str) -> None:
    (tmp_path / "p.py").write_text(f"class P:\n    def decide(self, seen):\n        {body}\n")
    request = {
        "ref": "./p.py:P", "options": {}, "base": str(tmp_path), "memory": 1024,
        "observation": {"sources": {}, "weights": {}},
    }  # fmt: skip
    child = Child(
        "mixloop.controller.decisions.policy_process",
        stdin=json.dumps(request), log=tmp_path / "log", timeout=timeout,
    )  # fmt: skip
    try:
        while child.running:
            time.sleep(0.02)
        answer = read_answer(child)
    finally:
        child.close()
    assert answer.kind == "failed"
    assert said in answer.payload["reason"]

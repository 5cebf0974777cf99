"""Status, manifest and holds: written, read, and what no reader can read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixloop.contract import (
    AcceptedOrder,
    FileEntry,
    Manifest,
    OrderInForce,
    PendingOrder,
    RejectedOrder,
    RunPaths,
    SourceLedger,
    SourceStatus,
    Status,
    read_holds,
    read_manifest,
    read_status,
    write_holds,
    write_manifest,
    write_status,
)

IN_FORCE = OrderInForce(1, 2, 80, 10, {"web": 0.5, "code": 0.5})
STATUS = Status(
    run="smol-1", incarnation=1, pid=42, host="h", step=12, sample=96, tokens=24576, budget=10**13,
    lr=1e-3, phase="stable", loss=2.5, grad_norm=0.7, tokens_per_second=1e4,
    sources={"web": SourceStatus(100, 0.5, 200, 2.25), "code": SourceStatus(1, 0.0, 5)},
    accepted=AcceptedOrder(1, 3), in_force=IN_FORCE, pending=PendingOrder(1, 3, 160),
    rejected=(RejectedOrder("why", "sha256:0", None, 4, 11),), heartbeat=3, updated_at="now",
)  # fmt: skip
MANIFEST = Manifest(
    run="smol-1", step=12, sample=96, tokens=24576, phase=None, in_force=IN_FORCE,
    sources={"web": SourceLedger(100, 0.5)}, incarnation=1, sequence_length=256, quantum=8,
    files={"model.safetensors": FileEntry(10, "00")}, created_at="now",
)  # fmt: skip


def test_status_manifest_and_holds_come_back(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write_status(paths.status, STATUS)
    assert read_status(paths.status).value == STATUS
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path).value == MANIFEST
    write_holds(paths.holds, [1200, 600, 600])
    assert read_holds(paths.holds).value == frozenset({600, 1200})
    for name in ("status.json", "manifest.json", "holds.json"):
        assert next(iter(json.loads((tmp_path / name).read_text()))) == "schema"


def test_a_diverged_run_still_has_a_status(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_status(path, replace(STATUS, loss=float("nan"), grad_norm=float("inf")))
    found = read_status(path).value
    assert found == replace(STATUS, loss=None, grad_norm=None)


def test_what_cannot_be_read_is_no_news(tmp_path: Path) -> None:
    assert read_status(tmp_path / "status.json").value is None
    assert read_manifest(tmp_path).value is None
    assert read_holds(tmp_path / "holds.json").value == frozenset()
    write_status(tmp_path / "status.json", STATUS)
    write_holds(tmp_path / "holds.json", [1])
    good = json.loads((tmp_path / "status.json").read_text())
    spoilt: list[Any] = [good | {key: [None]} for key in good]
    spoilt += [{k: v for k, v in good.items() if k != key} for key in ("schema", "run", "accepted")]
    spoilt += [None, [], {}, good | {"step": True}, good | {"phase": "cooldown"}]
    for value in spoilt:
        (tmp_path / "status.json").write_text(json.dumps(value))
        assert read_status(tmp_path / "status.json").value is None, value
    for data in (
        b"",
        b"{",
        b"\xff",
        b"[" * 10**5,
        b'{"schema": "mixloop/holds/1", "steps": [0.5]}',
    ):
        (tmp_path / "holds.json").write_bytes(data)
        assert read_holds(tmp_path / "holds.json").value is None  # who knows what is held
    (tmp_path / "holds.json").unlink()
    (tmp_path / "holds.json").symlink_to(tmp_path / "nowhere")
    assert read_holds(tmp_path / "holds.json").value is None
    assert read_holds(tmp_path / "nul\0.json").value is None


def test_a_newer_version_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text(json.dumps(STATUS.to_json() | {"new": 1}))
    assert read_status(path).value == STATUS

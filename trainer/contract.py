"""The run directory's file contracts, all in one place. Light: standard library only.

`mixture.json` lives in :mod:`orders`, `schedule.jsonl` in :mod:`schedule`, `status.json`,
`manifest.json` and `holds.json` in :mod:`status`; import them from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixloop.trainer.files import fsync_folder, writable_by_others, write_atomic
from mixloop.trainer.orders import (
    Limits,
    Order,
    Rejection,
    Stage,
    order_json,
    read_order,
    write_order,
)
from mixloop.trainer.problems import Found, Problem
from mixloop.trainer.schedule import (
    Line,
    OpenLine,
    Schedule,
    ScheduleError,
    ScheduleTaken,
    ScheduleWriter,
    SegmentLine,
    SourceEntry,
    VoidLine,
    find_schedule,
    read_schedule,
)
from mixloop.trainer.status import (
    AcceptedOrder,
    FileEntry,
    Health,
    Manifest,
    OrderInForce,
    PendingOrder,
    Phase,
    RejectedOrder,
    SourceLedger,
    SourceStatus,
    Status,
    System,
    find_holds,
    find_manifest,
    find_status,
    read_holds,
    read_manifest,
    read_status,
    write_holds,
    write_manifest,
    write_status,
)

__all__ = [
    "AcceptedOrder",
    "FileEntry",
    "Found",
    "Health",
    "Limits",
    "Line",
    "Manifest",
    "OpenLine",
    "Order",
    "OrderInForce",
    "PendingOrder",
    "Phase",
    "Problem",
    "RejectedOrder",
    "Rejection",
    "RunPaths",
    "Schedule",
    "ScheduleError",
    "ScheduleTaken",
    "ScheduleWriter",
    "SegmentLine",
    "SourceEntry",
    "SourceLedger",
    "SourceStatus",
    "Stage",
    "Status",
    "System",
    "VoidLine",
    "find_holds",
    "find_manifest",
    "find_schedule",
    "find_status",
    "fsync_folder",
    "order_json",
    "read_holds",
    "read_manifest",
    "read_order",
    "read_schedule",
    "read_status",
    "writable_by_others",
    "write_atomic",
    "write_holds",
    "write_manifest",
    "write_order",
    "write_status",
]


@dataclass(frozen=True)
class RunPaths:
    """Where the files of a run lie."""

    dir: Path

    @property
    def mixture(self) -> Path:
        """The order in force, written by the controller."""
        return self.dir / "mixture.json"

    @property
    def status(self) -> Path:
        """The trainer's heartbeat."""
        return self.dir / "status.json"

    @property
    def schedule(self) -> Path:
        """Every order as applied, written by the trainer."""
        return self.dir / "schedule.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.dir / "checkpoints"

    @property
    def holds(self) -> Path:
        """Checkpoints in use, written by the controller."""
        return self.dir / "holds.json"

    @property
    def requests(self) -> Path:
        """Folder of operators' requests."""
        return self.dir / "requests"

    @property
    def journal(self) -> Path:
        """The controller's database."""
        return self.dir / "journal.db"

    @property
    def job(self) -> Path:
        """The training job."""
        return self.dir / "job.json"

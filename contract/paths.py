"""Where the files of a run lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """Where the files of a run lie."""

    dir: Path

    @property
    def mixture(self) -> Path:
        """The order in force, written by the controller."""
        return self.dir / "mixture.json"

    @property
    def accepted(self) -> Path:
        """The trainer's own copy of the order it follows: fence and plan survive a restart."""
        return self.dir / "accepted.json"

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

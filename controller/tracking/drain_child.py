"""The process that drains the outbox into MLflow: what it is told, and its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixloop.common.process import Child
from mixloop.contract import RunPaths
from mixloop.controller.config import RunConfig

DRAIN_TIMEOUT = 300.0  # seconds one drain may take before it is killed and tried again


@dataclass
class DrainState:
    """The state of the MLflow drain: the running child, and when the next may start."""

    child: Child | None = None
    not_before: float = 0.0
    failures: int = 0
    last_error: str | None = None
    failing: str | None = None  # what the running drain said it failed on


def drain_request(config: RunConfig, paths: RunPaths, uid: str) -> dict[str, Any]:
    """What the drain's child has to know."""
    uri = str(config.tracking.uri)
    return {
        "journal": str(paths.journal),
        "uri": uri,
        "experiment": config.tracking.experiment,
        "uid": uid,
        "folder": str(paths.dir),
        "artifacts": str(paths.dir / "mlartifacts") if uri.startswith("sqlite:") else None,
    }

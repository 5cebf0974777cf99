"""Questions that several rooms ask the journal."""

from __future__ import annotations

import json

from .journal import Journal


def paused(journal: Journal) -> bool:
    """Whether an operator has paused decisions."""
    return bool(journal.value("SELECT value FROM meta WHERE key = 'paused'") == "true")


def pins(journal: Journal) -> dict[str, float]:
    """Shares that operators hold fixed."""
    found = journal.value("SELECT value FROM meta WHERE key = 'pins'")
    return dict(json.loads(found)) if found else {}

"""The commented run.yaml that ``mixloop init`` writes."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = Path(__file__).with_suffix(".yaml").read_text("utf-8")

"""Names for types that every room writes."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
"""An object of JSON."""

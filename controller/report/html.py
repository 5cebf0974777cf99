"""What every HTML page of ours is made in: one that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from mixloop.common import text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escaped(value: object) -> str:
    """Text from data: without control characters, escaped."""
    return escape(text.clean(value))


def document(title: str, css: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escaped(title)}</title>'
        f"<style>{css}</style></head><body>" + "\n".join(parts) + "</body></html>\n"
    )

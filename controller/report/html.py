"""HTML pages that load nothing and run nothing, from templates that can't forget to escape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixloop.common.text import clean

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(template: Path, title: str, **values: Any) -> str:
    """A page: the template, which extends ``base.html``, with the values.

    Every value is escaped and without control characters.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = environment.get_template(template.name).render(
        title=title, policy=Markup(POLICY), **values
    )
    return page

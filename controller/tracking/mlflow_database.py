"""The SQLite file that MLflow keeps a run in, where no server does."""

from __future__ import annotations

import contextlib
from pathlib import Path


def make_database(uri: str, uid: str) -> None:
    """Make an SQLite store that is not there yet, so that it appears whole or not at all.

    MLflow makes its tables in dozens of steps; killed between two of them it leaves a file that
    it can neither use nor mend ("table _alembic_tmp_experiments already exists").
    """
    from sqlalchemy.engine import make_url

    path = database_of(uri)
    if path is None or path.exists():
        return
    # one per run: what lies there is what an earlier drain of ours was killed over
    scratch = path.with_name(f".{path.name}.{uid}.new")
    journal = scratch.with_name(f"{scratch.name}-journal")
    for left in (scratch, journal):
        left.unlink(missing_ok=True)
    _make_tables(make_url(uri).set(database=str(scratch)).render_as_string(hide_password=False))
    with contextlib.suppress(FileExistsError):  # another run's, made meanwhile
        path.hardlink_to(scratch)
    scratch.unlink()


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store; None for another kind, or one without a file."""
    from sqlalchemy.engine import make_url

    name = make_url(uri).database if uri.startswith("sqlite:") else None
    return None if name in (None, "", ":memory:") else Path(name)


def _make_tables(uri: str) -> None:
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store(uri)
    store.search_experiments(max_results=1)
    store.engine.dispose()

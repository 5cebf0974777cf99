"""Per-item outcomes as a parquet file beside the scorecard, one row per item and metric.

What pandas, polars, DuckDB or a spreadsheet read directly. The scorecard holds the same numbers,
so a file that is missing can be made from it at any time.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mixloop.common.files import write_atomic
from mixloop.evals import Scorecard

from .metrics import cluster_of

if TYPE_CHECKING:
    import pyarrow as pa


class Outcome(NamedTuple):
    """One metric of one item at one checkpoint.

    `cluster` is what the item was drawn with (an MMLU subject, else the item itself), `value` the
    outcome in the metric's unit, `bytes` the UTF-8 length of the item's gold answer, which weighs
    bits_per_byte (None where that was not measured).
    """

    checkpoint: str
    step: int | None
    tokens: int | None
    benchmark: str
    item: str
    cluster: str
    metric: str
    value: float
    bytes: int | None


def outcomes_path(scorecard: Path) -> Path:
    """`step-00001200.items.parquet` beside `step-00001200.json`."""
    return scorecard.with_name(f"{scorecard.stem}.items.parquet")


def outcomes_of(card: Scorecard) -> list[Outcome]:
    """Every outcome of a scorecard, in its own order."""
    where = (card.checkpoint, card.step, card.tokens)
    return [
        Outcome(*where, name, item, cluster_of(name, item), metric, value, _gold_bytes(measured))
        for name, score in card.benchmarks.items()
        for item, measured in score.items.items()
        for metric, value in measured.items()
        if metric != "bytes"
    ]


def write_outcomes(card: Scorecard, path: Path) -> None:
    """Writes the file atomically; equal scorecards give equal bytes.

    Raises:
        OSError: the disk did not take it; what was there is untouched.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*outcomes_of(card), strict=True)
    schema = _schema()
    table = pa.Table.from_arrays(
        [
            pa.array(column, field.type)
            for column, field in zip(list(columns) or [()] * len(schema), schema, strict=True)
        ],
        schema=schema,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue().to_pybytes())


def read_outcomes(path: Path) -> list[Outcome]:
    """Reads the file back.

    Raises:
        OSError: it can't be read.
        ValueError: it is none of ours; names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file: {error}") from error
    if not table.schema.equals(_schema()):
        raise ValueError(f"{path}: not a file of outcomes: its columns are {table.column_names}")
    return [Outcome(*row) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]


def keep_outcomes(card: Scorecard, scorecard: Path) -> None:
    """Writes the outcomes beside the file of a scorecard; logs, and goes on, where it can't.

    A file left there by an earlier scoring is removed then: it would tell of another checkpoint.
    """
    path = outcomes_path(scorecard)
    try:
        write_outcomes(card, path)
    # the scorecard is safe and holds the same numbers: nothing here may cost the evaluation
    except Exception as error:
        logging.getLogger(__name__).warning("per-item outcomes are not written: %s", error)
        with contextlib.suppress(OSError):
            path.unlink()


def _schema() -> pa.Schema:
    import pyarrow as pa

    name = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            pa.field("checkpoint", name, nullable=False),
            pa.field("step", pa.int64()),
            pa.field("tokens", pa.int64()),
            pa.field("benchmark", name, nullable=False),
            pa.field("item", pa.string(), nullable=False),
            pa.field("cluster", pa.string(), nullable=False),
            pa.field("metric", name, nullable=False),
            pa.field("value", pa.float64(), nullable=False),
            pa.field("bytes", pa.int64()),
        ]
    )


def _gold_bytes(measured: dict[str, float]) -> int | None:
    return int(measured["bytes"]) if "bytes" in measured else None

"""Per-item outcomes as a parquet file beside the scorecard, one row per item and metric.

What pandas, polars, DuckDB or a spreadsheet read directly. The scorecard holds the same numbers,
so a file that is missing can be made from it at any time.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from mixloop.common.files import write_atomic
from mixloop.evals import Scorecard

from .metrics import cluster_of


def outcomes_path(scorecard: Path) -> Path:
    """`step-00001200.items.parquet` beside `step-00001200.json`."""
    return scorecard.with_name(f"{scorecard.stem}.items.parquet")


def write_outcomes(card: Scorecard, path: Path) -> None:
    """Writes the file atomically; equal scorecards give equal bytes.

    Column `cluster` is what the item was drawn with (an MMLU subject, else the item itself),
    `value` the outcome in the metric's unit, `bytes` the UTF-8 length of the item's gold answer,
    which weighs bits_per_byte (null where that was not measured).

    Raises:
        OSError: the disk did not take it; what was there is untouched.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
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
    rows = [
        (
            *(card.checkpoint, card.step, card.tokens),
            *(benchmark, item, cluster_of(benchmark, item), metric, value),
            int(outcome["bytes"]) if "bytes" in outcome else None,
        )
        for benchmark, score in card.benchmarks.items()
        for item, outcome in score.items.items()
        for metric, value in outcome.items()
        if metric != "bytes"
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, sink.getvalue().to_pybytes())


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

"""Token stores cut down to a seeded random choice of their windows, for proxy runs.

A proxy that is a thousandth as long as its target and draws from the whole corpus never repeats a
token that the target repeats five times, and so favours small sources; with every source cut to
the same share, repetition is the target's (*Repetition mismatch*, arXiv 2606.07597).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.common.files import write_atomic
from mixloop.trainer.sources import DTYPES, open_source, read_header


def subsample(
    source: Path,
    out: Path,
    tokens: int,
    window: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tokens`` (whole windows of ``window``) of the source ``source`` as a store ``out``.

    Windows keep their order. A store that is there already is kept: its header comes last.

    Raises:
        JobError: no sound store at ``source``.
        OSError: the disk did not take it.
    """
    if (out / "store.json").is_file() and read_header(out).tokens == tokens:
        return
    store = open_source(source, options)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if store.tokenizer.is_dir():  # other formats carry none: the run names it
        shutil.copytree(store.tokenizer, out / "tokenizer")
    windows = np.random.default_rng(seed).permutation(store.samples(window))
    chosen = np.sort(windows[: tokens // window])
    dtype = store.info.dtype if store.info.dtype in DTYPES else "uint32"
    with (out / "tokens.bin").open("wb") as stream:
        for part in np.array_split(chosen, max(1, len(chosen) // 4096)):
            stream.write(store.stream.gather(part, window).astype(DTYPES[dtype]).tobytes())
    choice = f"{store.info.fingerprint} {window} {tokens} {seed}"
    fingerprint = f"sha256:{hashlib.sha256(choice.encode()).hexdigest()}"
    info = replace(
        store.info, tokens=tokens, fingerprint=fingerprint, dtype=dtype, shards=(), history=()
    )
    write_atomic(out / "store.json", json.dumps(info.to_json(), indent=1).encode())

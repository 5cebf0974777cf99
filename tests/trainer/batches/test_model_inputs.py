"""Ids keep their values whatever types the sources have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.trainer.batches import native
from mixloop.trainer.sources import Store, StoreInfo
from mixloop.trainer.sources.stream import Stream, file_piece


def store(folder: Path, kind: str, highest: int) -> Store:
    path = folder / f"{kind.strip('<')}.bin"
    np.array([0, highest], kind).tofile(path)
    info = StoreInfo(2, 1, np.dtype(kind).name, 0, "", "", 0)
    return Store(path, info, Stream([file_piece(path, np.dtype(kind), 2)], kind))


@pytest.mark.parametrize(
    ("first", "second", "right"),
    [
        (("<u2", 60_000), ("<i2", 30_000), "int32"),
        (("<i2", 30_000), ("<u2", 60_000), "int32"),
        (("<u4", 4_000_000_000), ("<i4", 2_000_000_000), "int64"),
        (("<u2", 60_000), ("<u1", 200), "uint16"),
        (("<u2", 60_000), ("<u2", 60_000), "uint16"),
    ],
)
def test_the_native_type_holds_every_id(
    tmp_path: Path, first: tuple[str, int], second: tuple[str, int], right: str
) -> None:
    stores: dict[str, Any] = {}
    for number, (kind, highest) in enumerate((first, second)):
        folder = tmp_path / str(number)
        folder.mkdir()
        stores[str(number)] = store(folder, kind, highest)
    dtype = native(stores)
    assert np.dtype(dtype) == right
    for (_, highest), one in zip((first, second), stores.values(), strict=True):
        out = np.empty((1, 2), dtype)
        assert one.gather(np.array([0]), 2, out).tolist() == [[0, highest]]

"""Windows over many files."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.trainer.sources.memory_map import MappedFile, Pool
from mixloop.trainer.sources.stream import Piece, Stream, file_piece


def tokens(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1000, count).astype(np.uint16)


def stream_of(folder: Path, parts: list[np.ndarray[Any, Any]], pool: Pool) -> Stream:
    """A stream whose parts lie in files of their own, or several to a file, between other bytes."""
    pieces = []
    for number, part in enumerate(parts):
        file = folder / f"{number}.bin"
        if number % 3 == 2:  # as in arrow files: a part that begins somewhere inside
            file.write_bytes(b"x" * 10 + part.tobytes() + b"y" * 7)
            pieces.append(Piece(MappedFile(file, part.nbytes + 17, pool), len(part), 10))
        else:
            file.write_bytes(part.tobytes())
            pieces.append(file_piece(file, part.dtype, len(part), pool))
    return Stream(pieces, np.uint16)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(100, 300)), min_size=1, max_size=8),
    length=st.integers(1, 50),
    most=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_windows_are_those_of_the_concatenation(
    sizes: list[int], length: int, most: int, seed: int
) -> None:
    parts = [tokens(size, seed + i) for i, size in enumerate(sizes)]
    whole = np.concatenate(parts)
    count = len(whole) // length
    samples = np.random.default_rng(seed).permutation(count)
    expected = whole[: count * length].reshape(count, length)[samples]
    with tempfile.TemporaryDirectory() as folder:
        stream = stream_of(Path(folder), parts, Pool(most))
        assert stream.tokens == len(whole)
        np.testing.assert_array_equal(stream.gather(samples, length), expected)
        out = np.full((count + 2, length), -1, np.int64)
        rows = np.random.default_rng(seed + 1).permutation(count)
        stream.gather(samples, length, out, rows)
        assert stream.mapped <= most
    np.testing.assert_array_equal(out[rows], expected)
    assert (out[count:] == -1).all()


def test_many_threads_read_through_a_small_pool(tmp_path: Path) -> None:
    parts = [np.full(50, number, np.uint16) for number in range(40)]
    stream = stream_of(tmp_path, parts, Pool(2))
    samples = np.random.default_rng(0).permutation(200)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: stream.gather(samples, 10), range(40)):
            np.testing.assert_array_equal(found, np.repeat(samples // 5, 10).reshape(-1, 10))

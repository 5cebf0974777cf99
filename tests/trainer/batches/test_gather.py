"""Batches gathered from many sources at once: every window lands in its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixloop.trainer.batches.gather import BatchGatherer
from mixloop.trainer.sources import Store, StoreInfo
from mixloop.trainer.sources.stream import Stream, file_piece

Ints = npt.NDArray[np.int64]


def make_store(folder: Path, tokens: npt.NDArray[Any]) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    tokens.tofile(folder / "tokens.bin")
    info = StoreInfo(tokens.size, 1, tokens.dtype.name, 60_000, "t", "sha256:0", 0)
    return Store(
        folder,
        info,
        Stream([file_piece(folder / "tokens.bin", tokens.dtype, tokens.size)], tokens.dtype),
    )


class InFiles:
    """A source in several files: no flat view."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def samples(self, sequence_length: int) -> int:
        return self._store.samples(sequence_length)

    def flat(self) -> None:
        return None

    def gather(self, samples: Ints, sequence_length: int, out: Any = None, rows: Any = None) -> Any:
        return self._store.gather(samples, sequence_length, out, rows)


def expected(stores: list[Store], length: int, source: Ints, index: Ints) -> npt.NDArray[Any]:
    rows = [
        stores[s].stream.read(i * length, length)
        for s, i in zip(source.ravel(), index.ravel(), strict=True)
    ]
    return np.array(rows, np.int64).reshape(*source.shape, length)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    sizes=st.lists(
        st.tuples(
            st.integers(4100, 20_000), st.sampled_from([np.uint16, np.uint32]), st.booleans()
        ),
        min_size=1,
        max_size=6,
    ),
    length=st.sampled_from([1, 5, 256, 1000, 1024, 2048, 4096]),
    shape=st.sampled_from([(0,), (1,), (300,), (2, 3, 4)]),
    kind=st.sampled_from([np.uint16, np.uint32, np.int32, np.int64]),
    seed=st.integers(0, 2**32),
)
def test_every_window_lands_in_its_row(
    tmp_path: Path,
    sizes: list[tuple[int, type, bool]],
    length: int,
    shape: tuple[int, ...],
    kind: type,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    if kind is np.uint16:
        sizes = [(tokens, np.uint16, split) for tokens, _, split in sizes]
    stores = [
        make_store(tmp_path / f"{seed}-{n}", random.integers(0, 60_000, tokens).astype(token))
        for n, (tokens, token, _) in enumerate(sizes)
    ]
    sources: list[Any] = [
        InFiles(store) if split else store
        for store, (_, _, split) in zip(stores, sizes, strict=True)
    ]
    gatherer = BatchGatherer(sources, length)
    for _ in range(2):
        source = random.integers(0, len(stores), shape)
        whole = np.array([store.samples(length) for store in stores])
        index = random.integers(0, whole[source])
        out = np.full((*shape, length), 7, kind)
        gatherer.fill(source, index, out)
        np.testing.assert_array_equal(out, expected(stores, length, source, index))


def test_views_that_begin_anywhere_in_a_file(tmp_path: Path) -> None:
    """Formats with a header: the sources' distances are no multiples of a page."""
    tokens = np.arange(30_000, dtype=np.uint16)
    stores = [make_store(tmp_path / str(n), tokens + n) for n in range(2)]

    class Behind(InFiles):
        def __init__(self, store: Store, header: int) -> None:
            super().__init__(store)
            self._tokens = store.stream.read(0, store.info.tokens)[header:]

        def samples(self, sequence_length: int) -> int:
            return int(self._tokens.size) // sequence_length

        def flat(self) -> Any:
            return self._tokens

        def gather(
            self, samples: Ints, sequence_length: int, out: Any = None, rows: Any = None
        ) -> Any:
            whole = self.samples(sequence_length)
            windows = self._tokens[: whole * sequence_length].reshape(whole, sequence_length)
            out[rows] = windows[samples]
            return out

    for headers in ((0, 512), (1, 3), (2048, 512)):
        sources: list[Any] = [
            Behind(store, header) for store, header in zip(stores, headers, strict=True)
        ]
        gatherer = BatchGatherer(sources, 1024)
        out = np.empty((4, 1024), np.int64)
        gatherer.fill(np.array([0, 1, 1, 0]), np.array([3, 3, 25, 0]), out)
        assert out[:, 0].tolist() == [
            3 * 1024 + headers[0],
            3 * 1024 + headers[1] + 1,
            25 * 1024 + headers[1] + 1,
            headers[0],
        ]
        np.testing.assert_array_equal(out, out[:, :1] + np.arange(1024))


def test_a_window_that_is_not_there_is_refused(tmp_path: Path) -> None:
    stores = [make_store(tmp_path / str(n), np.arange(5000, dtype=np.uint16)) for n in range(2)]
    gatherer = BatchGatherer(stores, 1024)
    out = np.zeros((2, 1024), np.uint16)
    for wrong in (4, -1, 2**62):
        with pytest.raises(IndexError, match=f"window {wrong} of source 1: it has 4"):
            gatherer.fill(np.array([0, 1]), np.array([3, wrong]), out)
    with pytest.raises(IndexError):
        gatherer.fill(np.array([0, 2]), np.array([3, 0]), out)
    assert not out.any()


def test_memory_of_another_shape_is_refused(tmp_path: Path) -> None:
    gatherer = BatchGatherer([make_store(tmp_path, np.arange(5000, dtype=np.uint16))], 1024)
    pair = np.zeros(2, np.int64), np.arange(2)
    for out in (
        np.zeros((3, 1024), np.uint16),
        np.zeros((2, 512), np.uint16),
        np.zeros((2, 2048), np.uint16)[:, ::2],
    ):
        with pytest.raises(ValueError, match="contiguous memory"):
            gatherer.fill(*pair, out)

"""The order far out, in long segments and over many sources: as exact as in its first quanta."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import numpy.typing as npt
import pytest

from mixloop.contract import SCALE, Segment
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.mixing.permutation import Permutations
from mixloop.trainer.mixing.quota import SourceQuotas

Ints = npt.NDArray[np.int64]


def heavy_tailed(sources: int, least: int = 839) -> dict[str, int]:
    """Integer shares falling as 1/i^2, none below 5e-5; no float comes into them."""
    units = [max(least, SCALE // ((i + 1) * (i + 2))) for i in range(sources)]
    units[0] += SCALE - sum(units)
    assert units[0] > 0
    return {f"s{i}": n for i, n in enumerate(units)}


def sizes_of(sources: int) -> dict[str, int]:
    """Small and large, powers of two and next to them, one beyond 2^32."""
    sizes = itertools.cycle([97, 1024, 1025, 48_828, 5_000_000, 2**32, 2**32 + 1, 3])
    return {f"s{i}": size for i, size in zip(range(sources), sizes, strict=False)}


def draws(order: MixtureOrder, start: int, quanta: int, quantum: int) -> Ints:
    """Draws by source in the run's first ``start + k quantum`` samples, shape [quanta, sources]."""
    source, _ = order.batch(start, quanta * quantum)
    cells = np.arange(source.size) // quantum * len(order.names) + source
    counts = np.bincount(cells, minlength=quanta * len(order.names))
    begun = np.array(list(order.drawn(start).values()))
    return np.asarray(counts.reshape(quanta, -1).cumsum(axis=0) + begun, np.int64)


def assert_floor_or_ceil(got: Ints, units: dict[str, int], ends: Ints) -> None:
    entitled = np.array([[n * int(end) for n in units.values()] for end in ends], object)
    assert (got >= entitled // SCALE).all()
    assert (got <= -(-entitled // SCALE)).all()


@pytest.mark.parametrize("quantum", [1, 64, 1000])
def test_a_segment_that_begins_at_10_to_the_12_is_like_one_at_0(quantum: int) -> None:
    # shares in 4096ths leave no remainder after 10^12 samples, which is 2^12 5^12
    even = {"s0": SCALE // 2, **{f"s{i}": SCALE // 64 for i in range(1, 33)}}
    units = heavy_tailed(46)
    late = MixtureOrder(sizes_of(46), 3, [Segment(0, even, 4096), Segment(10**12, units, quantum)])
    early = MixtureOrder(sizes_of(46), 3, [Segment(0, units, quantum)])
    length = 1000 * quantum
    there, here = late.batch(10**12, length)[0], early.batch(0, length)[0]
    np.testing.assert_array_equal(there, here)
    ends = np.arange(1, 1001) * quantum
    assert_floor_or_ceil(draws(early, 0, 1000, quantum), units, ends)


@pytest.mark.parametrize(("start", "quantum"), [(0, 64), (0, 1000), (10**12 + 77, 24)])
def test_a_segment_of_10_to_the_10_samples_is_exact_to_its_end(start: int, quantum: int) -> None:
    units = heavy_tailed(46)
    length = 10**10 // quantum * quantum
    following = Segment(start + length, units, 7)
    schedule = [Segment(0, units, 11), Segment(start, units, quantum), following]
    order = MixtureOrder(sizes_of(46), 0, schedule)
    for quanta in (0, length // quantum // 2, length // quantum - 1000):
        begin = start + quanta * quantum
        ends = begin + np.arange(1, 1001) * quantum
        assert_floor_or_ceil(draws(order, begin, 1000, quantum), units, ends)
    ends = start + length + np.arange(1, 1001) * 7
    assert_floor_or_ceil(draws(order, start + length, 1000, 7), units, ends)


def test_the_order_is_the_same_on_every_platform() -> None:
    """A changed hash is another order: runs that go on would repeat and lose samples."""
    units = heavy_tailed(46)
    turned = dict(zip(units, reversed(units.values()), strict=True))
    few = {"s3": SCALE // 4, "s4": SCALE - SCALE // 4}
    schedule = [
        Segment(0, units, 64),
        Segment(6_400, turned, 1000),
        Segment(10**10, few, 24),
        Segment(10**12, units, 2048),
    ]
    order = MixtureOrder(sizes_of(46), 7, schedule)
    found = hashlib.sha256()
    for start in (0, 5_000, 10**10 - 3_000, 10**10 + 12, 10**12, 10**12 + 10**10, 10**15):
        for part in order.batch(start, 6_000):
            found.update(part.astype("<i8").tobytes())
    assert found.hexdigest() == "b76e75d8fe4ade4256d3e1af2a981f4570efa98532e9de319f086a0913630bed"


@pytest.mark.parametrize("quantum", [3, 64, 500])
@pytest.mark.parametrize("sources", [1, 4, 46, 300])
def test_quanta_walked_together_are_those_walked_one_by_one(sources: int, quantum: int) -> None:
    random = np.random.default_rng(sources * quantum)
    for trial in range(6):
        raw = random.dirichlet(np.full(sources, 0.3))
        raw[random.random(sources) < 0.2] = 0
        weights = np.asarray(raw / (raw.sum() or 1) * SCALE, np.int64)
        weights[np.argmax(weights)] += SCALE - weights.sum()
        # up to a few samples owed or ahead: some quanta hold less than what is due
        carried = random.integers(-1 - trial, 2 + trial, sources) * (SCALE // 3)
        carried[0] -= carried.sum()
        quota = SourceQuotas(weights, quantum, carried)
        ends = np.arange(1, 201) * quantum
        together = quota.walk(0, ends, np.zeros(sources, np.int64))
        given = np.zeros(sources, np.int64)
        for end, expected in zip(ends, together, strict=True):
            given = quota.walk(int(end) - quantum, np.array([end]), given)[0]
            np.testing.assert_array_equal(given, expected)
        assert (together.sum(axis=1) == ends).all()


def test_more_sources_than_a_byte_can_number_are_as_exact() -> None:
    units = heavy_tailed(1000)
    order = MixtureOrder(dict.fromkeys(units, 1000), 0, [Segment(0, units, 512)])
    assert_floor_or_ceil(
        draws(order, 512 * 10**6, 50, 512), units, 512 * (10**6 + np.arange(1, 51))
    )


def test_consecutive_draws_are_those_asked_for_one_by_one() -> None:
    random = np.random.default_rng(0)
    sizes = {str(n): n for n in (1, 2, 3, 5, 64, 97, 1000, 2**16, 2**32, 2**32 + 1, 2**61 + 3)}
    for keep in (list(sizes), ["1", "64", "1000"], [str(2**61 + 3)]):
        permute = Permutations({name: sizes[name] for name in keep}, 4)
        first = random.integers(0, 3000, len(keep))
        counts = random.integers(0, 400, len(keep))
        source = np.repeat(np.arange(len(keep)), counts)
        draw = np.concatenate([np.arange(a, a + n) for a, n in zip(first, counts, strict=True)])
        together = permute.consecutive(first, counts)
        np.testing.assert_array_equal(together, permute(source, draw))
        shuffled = random.permutation(source.size)
        np.testing.assert_array_equal(together[shuffled], permute(source[shuffled], draw[shuffled]))


def test_large_sources_do_not_change_how_others_are_permuted() -> None:
    first, counts = np.array([5, 0]), np.array([900, 0])
    alone = Permutations({"a": 500, "b": 9}, 1).consecutive(first, counts)
    beside = Permutations({"a": 500, "b": 2**50}, 1).consecutive(first, counts)
    np.testing.assert_array_equal(alone, beside)


def chi_squared(cells: Ints, kinds: int) -> float:
    """Of counts that should be equal, less the degrees of freedom, over their deviation."""
    counts = np.bincount(cells, minlength=kinds)
    expected = cells.size / kinds
    value = float(((counts - expected) ** 2 / expected).sum())
    return (value - (kinds - 1)) / float(np.sqrt(2 * (kinds - 1)))


@pytest.mark.parametrize("size", [5, 16, 100])
def test_over_keys_every_sample_is_as_likely_at_every_place(size: int) -> None:
    keys = 4000
    moved = np.stack(
        [
            Permutations({"x": size}, seed).consecutive(np.array([0]), np.array([4 * size]))
            for seed in range(keys // 4)
        ]
    ).reshape(keys, size)  # seeds and epochs alike
    assert (np.sort(moved, axis=1) == np.arange(size)).all()
    for place in (0, 1, size // 2, size - 1):
        assert chi_squared(moved[:, place], size) < 5
    assert chi_squared((moved[:, 1] - moved[:, 0]) % size - 1, size - 1) < 5


@pytest.mark.parametrize("size", [1024, 3000, 48_828, 2**20 + 1])
def test_neighbours_are_spread_as_by_chance_over_keys(size: int) -> None:
    worst = 0.0
    for seed in range(40):
        count = np.array([min(size, 20_000)])
        moved = Permutations({"x": size}, seed).consecutive(np.array([0]), count)
        eighth, low = moved * 8 // size, moved % 8
        pairs = [
            (np.arange(moved.size) * 8 // moved.size, eighth),
            (np.arange(moved.size) % 8, low),
        ]
        pairs += [(part[:-lag], part[lag:]) for part in (eighth, low) for lag in (1, 2, 16)]
        worst = max(worst, *(chi_squared(a * 8 + b, 64) for a, b in pairs))
        step = (moved[1:] - moved[:-1]) % size
        worst = max(worst, chi_squared(step * 32 // size, 32))
    assert worst < 6  # of 360 values that are standard normal or a little skewed

"""The mixing order: exact shares, remainders carried, seeks, permutations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.contract import SCALE, Segment, quantise
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.mixing.permutation import Permutations

Ints = npt.NDArray[np.int64]

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
QUANTA = st.one_of(st.integers(1, 9), st.sampled_from([24, 64, 100, 1000, 1024]))


@st.composite
def mixtures(draw: st.DrawFn, sources: int) -> dict[str, float]:
    """Weights of any kind: zero, 1e-6, a few large ones."""
    kinds = st.one_of(
        st.just(0.0), st.just(1e-6), st.floats(1e-6, 1e-3), st.floats(0.01, 1), st.just(1.0)
    )
    raw = [draw(kinds) for _ in range(sources)]
    if max(raw) < 0.01:
        raw[draw(st.integers(0, sources - 1))] = 1.0
    scale = sum(raw) - sum(w for w in raw if w == 1e-6) or 1.0
    shares = [w if w == 1e-6 else w / scale for w in raw]
    largest = shares.index(max(shares))
    shares[largest] += 1 - sum(shares)
    return {f"s{i}": share for i, share in enumerate(shares)}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, list[Segment]]:
    """Several segments; starts and quanta unrelated to one another."""
    sources = draw(st.integers(1, 12))
    sample, segments = 0, []
    for _ in range(draw(st.integers(1, 8))):
        segments.append(Segment(sample, draw(mixtures(sources)), draw(QUANTA)))
        sample += draw(st.one_of(st.integers(1, 60), st.integers(1, 3000)))
    return sources, segments


def sizes_of(sources: int, size: int = 1000) -> dict[str, int]:
    return {f"s{i}": size + i for i in range(sources)}


def units_of(weights: Mapping[str, float], sources: int) -> Ints:
    units = quantise(weights)
    return np.array([units.get(f"s{i}", 0) for i in range(sources)], np.int64)


def counts(source: Ints, sources: int, ends: Sequence[int]) -> Ints:
    """Draws by source before each of `ends`, shape [ends, sources]."""
    one_hot = np.zeros((source.size + 1, sources), np.int64)
    one_hot[np.arange(1, source.size + 1), source] = 1
    return np.asarray(one_hot.cumsum(axis=0)[list(ends)], np.int64)


@PROPERTY
@given(data=st.data(), sources=st.integers(1, 20), quantum=QUANTA)
def test_floor_or_ceil_of_the_share_after_every_quantum(
    data: st.DataObject, sources: int, quantum: int
) -> None:
    weights = data.draw(mixtures(sources))
    order = MixtureOrder(sizes_of(sources), 0, [Segment(0, weights, quantum)])
    quanta = max(3, 6000 // quantum)
    ends = np.arange(0, quanta + 1) * quantum
    got = counts(order.batch(0, int(ends[-1]))[0], sources, list(ends))
    entitled = units_of(weights, sources) * ends[:, None]
    assert (got >= entitled // SCALE).all()
    assert (got <= -(-entitled // SCALE)).all()


@PROPERTY
@given(data=st.data(), quanta=st.lists(QUANTA, min_size=2, max_size=5))
def test_floor_or_ceil_also_when_only_the_quantum_changes(
    data: st.DataObject, quanta: list[int]
) -> None:
    weights = data.draw(mixtures(7))
    starts = [0]
    for _ in quanta[1:]:
        starts.append(starts[-1] + data.draw(st.integers(1, 500)))
    schedule = [Segment(s, weights, q) for s, q in zip(starts, quanta, strict=True)]
    ends = [
        sample
        for start, end, quantum in zip(starts, [*starts[1:], starts[-1] + 999], quanta, strict=True)
        for sample in range(start, end, quantum)
    ]
    got = counts(MixtureOrder(sizes_of(7), 0, schedule).batch(0, ends[-1])[0], 7, ends)
    entitled = units_of(weights, 7) * np.array(ends)[:, None]
    assert (got >= entitled // SCALE).all()
    assert (got <= -(-entitled // SCALE)).all()


def error_at_every_quantum(sources: int, segments: Sequence[Segment], tail: int) -> Ints:
    """Integrated weights less draws, in 1/SCALE samples, at every quantum, [ends, sources]."""
    order = MixtureOrder(sizes_of(sources), 0, segments)
    last = segments[-1].sample + tail
    ends, entitled, before = [0], [np.zeros(sources, np.int64)], np.zeros(sources, np.int64)
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        end = following.sample if following else last
        units = units_of(segment.weights, sources)
        stops = [*range(segment.sample + segment.step_samples, end, segment.step_samples), end]
        ends += stops
        entitled += [before + units * (stop - segment.sample) for stop in stops]
        before = entitled[-1]
    got = counts(order.batch(0, last)[0], sources, ends)
    return np.asarray(np.array(entitled) - got * SCALE, np.int64)


@PROPERTY
@given(schedule=schedules())
def test_less_than_two_samples_from_the_integrated_weights(
    schedule: tuple[int, list[Segment]],
) -> None:
    sources, segments = schedule
    assert np.abs(error_at_every_quantum(sources, segments, 1000)).max() < 2 * SCALE


@pytest.mark.parametrize("quantum", [1, 3, 24, 64])
@pytest.mark.parametrize("concentration", [0.02, 0.3, 5.0])
def test_less_than_two_samples_over_many_changes_of_many_sources(
    quantum: int, concentration: float
) -> None:
    random = np.random.default_rng(quantum)
    sources, sample, segments = 46, 0, []
    for number in range(200):
        shares = random.dirichlet(np.full(sources, concentration))
        if number % 3 == 0:
            shares[random.integers(sources, size=9)] = 0.0
        shares /= shares.sum()
        weights = {f"s{i}": float(share) for i, share in enumerate(shares)}
        segments.append(Segment(sample, weights, quantum))
        sample += int(random.choice([1, quantum, 5 * quantum, 7 * quantum + 1]))
    errors = np.abs(error_at_every_quantum(sources, segments, 40 * quantum))
    assert errors.max() < 2 * SCALE


def test_no_small_source_starves_over_200_changes() -> None:
    small, sample, segments = 5e-5, 0, []
    for number in range(200):
        large = 0.6 if number % 2 else 0.3
        weights = {"a": large, "b": 1 - large - small, "c": small}
        segments.append(Segment(sample, weights, 64))
        sample += 160 * 64
    drawn = MixtureOrder({"a": 10**6, "b": 10**6, "c": 50}, 1, segments).drawn(sample)
    assert abs(drawn["c"] - small * sample) < 1.01  # about 102 samples are due
    assert drawn["c"] > 100


@PROPERTY
@given(schedule=schedules(), data=st.data())
def test_slices_agree_however_they_are_cut(
    schedule: tuple[int, list[Segment]], data: st.DataObject
) -> None:
    sources, segments = schedule
    whole_order = MixtureOrder(sizes_of(sources, 50), 3, segments)
    total = segments[-1].sample + 1500
    source, sample = whole_order.batch(0, total)
    assert source.dtype == sample.dtype == np.int64
    assert source.shape == sample.shape == (total,)
    for _ in range(4):
        fresh = MixtureOrder(sizes_of(sources, 50), 3, segments)
        start = data.draw(st.integers(0, total))
        count = data.draw(st.integers(0, total - start))
        here = fresh if data.draw(st.booleans()) else whole_order
        part = here.batch(start, count)
        np.testing.assert_array_equal(part[0], source[start : start + count])
        np.testing.assert_array_equal(part[1], sample[start : start + count])
        expected = np.bincount(source[:start], minlength=sources)
        assert fresh.drawn(start) == dict(zip(fresh.names, expected.tolist(), strict=True))


@PROPERTY
@given(schedule=schedules())
def test_a_segment_added_live_gives_the_same_order(schedule: tuple[int, list[Segment]]) -> None:
    sources, segments = schedule
    live = MixtureOrder(sizes_of(sources), 0, segments[:1])
    for segment, following in itertools.zip_longest(segments[1:], segments[2:]):
        reached = segment.sample // 2
        before = live.batch(0, reached)[0]  # drawn before the change is known
        live = live.with_segment(segment)
        last = live.batch(segment.sample, 100 if following is None else 1)
        assert last[0].size
        whole = reached - reached % max(s.step_samples for s in segments)
        if len({s.step_samples for s in segments}) == 1:
            np.testing.assert_array_equal(live.batch(0, whole)[0], before[:whole])
    at_once = MixtureOrder(sizes_of(sources), 0, segments)
    total = segments[-1].sample + 500
    np.testing.assert_array_equal(live.batch(0, total), at_once.batch(0, total))


def test_whole_quanta_before_a_new_segment_stay_as_they_are() -> None:
    old = MixtureOrder(sizes_of(5), 0, [Segment(0, {"s0": 0.6, "s3": 0.4}, 8)])
    new = old.with_segment(Segment(83, {"s1": 0.5, "s4": 0.5}, 8))
    np.testing.assert_array_equal(new.batch(0, 80), old.batch(0, 80))


@pytest.mark.parametrize("quantum", [1, 24, 1000, 1024])
def test_a_far_seek_is_quick_and_exact(quantum: int) -> None:
    random = np.random.default_rng(quantum)
    shares = random.dirichlet(np.full(46, 0.4))
    shares[:3] = 1e-6
    shares /= shares.sum()
    weights = {f"s{i}": float(share) for i, share in enumerate(shares)}
    units = quantise(weights)
    for far in (11 * 10**12 // 1024, 10**14 + 7):
        order = MixtureOrder(sizes_of(46), 0, [Segment(0, weights, quantum)])
        start = far // quantum * quantum
        begun = time.process_time()
        drawn = order.drawn(start)
        assert time.process_time() - begun < 2.0  # a replay would take days
        assert sum(drawn.values()) == start
        for name, number in drawn.items():
            assert 0 <= Fraction(units[name] * start, SCALE) - number + 1 <= 2
            assert abs(Fraction(units[name] * start, SCALE) - number) < 1
        source, _ = order.batch(start, 3 * quantum)
        after = MixtureOrder(sizes_of(46), 0, [Segment(0, weights, quantum)])
        found = after.drawn(start + 3 * quantum)
        grown = np.bincount(source, minlength=46).tolist()
        assert list(found.values()) == [a + b for a, b in zip(drawn.values(), grown, strict=True)]


def test_a_source_without_weight_gives_nothing() -> None:
    even = {f"s{i}": 1 / 8 for i in range(8)}
    few = {"s6": 0.5, "s7": 0.5}
    for at in range(1, 30):
        order = MixtureOrder(sizes_of(8), 0, [Segment(0, even, 1), Segment(at, few, 3)])
        assert set(order.batch(at, 500)[0].tolist()) == {6, 7}


def test_sources_are_spread_evenly_inside_a_quantum() -> None:
    weights = {"s0": 0.5, "s1": 0.25, "s2": 0.125, **{f"s{i}": 0.0125 for i in range(3, 13)}}
    order = MixtureOrder(sizes_of(13), 0, [Segment(0, weights, 512)])
    source, _ = order.batch(0, 512 * 20)
    for micro_batch in source.reshape(-1, 64):
        got = np.bincount(micro_batch, minlength=13)
        assert np.abs(got[:3] - np.array([32, 16, 8])).max() <= 4
        assert got[3:].sum() <= 16


@PROPERTY
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 50))
def test_every_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    permute = Permutations({"x": size}, seed)
    place = np.arange(epoch * size, (epoch + 2) * size)
    both = permute(np.zeros_like(place), place).reshape(2, size)
    for one in both:
        np.testing.assert_array_equal(np.sort(one), np.arange(size))
    if size > 20:
        assert (both[0] != both[1]).any()


def test_epochs_of_a_run_are_permutations_and_differ() -> None:
    order = MixtureOrder({"a": 97, "b": 1000}, 5, [Segment(0, {"a": 0.5, "b": 0.5}, 16)])
    source, sample = order.batch(0, 97 * 2 * 6)
    epochs = sample[source == 0][: 97 * 5].reshape(5, 97)
    assert all(sorted(epoch) == list(range(97)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5


def test_a_permutation_looks_random() -> None:
    place = np.arange(10_000)
    moved = Permutations({"x": 10_000}, 1)(np.zeros_like(place), place)
    assert abs(np.corrcoef(place, moved)[0, 1]) < 0.05
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 0.05
    halves = np.histogram2d(place, moved, bins=10)[0]  # 100 expected in each cell
    assert ((halves - 100) ** 2 / 100).sum() < 150  # chi squared, 81 degrees of freedom


def test_large_sources_stay_in_range() -> None:
    sizes = {"x": 2**40 + 12345, "y": 2**61}
    place = np.arange(10**12, 10**12 + 2000)
    for index, size in enumerate(sizes.values()):
        moved = Permutations(sizes, 1)(np.full_like(place, index), place)
        assert np.unique(moved).size == 2000
        assert moved.min() >= 0
        assert moved.max() < size


def test_other_sources_do_not_move_a_source() -> None:
    def stream(sizes: dict[str, int], weights: dict[str, float]) -> list[int]:
        order = MixtureOrder(sizes, 9, [Segment(0, weights, 32)])
        source, sample = order.batch(0, 2000)
        return list(sample[source == list(sizes).index("b")].tolist()[:400])

    alone = stream({"a": 50, "b": 300}, {"a": 0.5, "b": 0.5})
    added = stream({"new": 7, "a": 50, "b": 300}, {"new": 0.25, "a": 0.25, "b": 0.5})
    retired = stream({"b": 300}, {"b": 1.0})
    assert alone == added == retired


def test_seed_and_name_key_the_permutation() -> None:
    place, zero = np.arange(100), np.zeros(100, np.int64)
    found = {
        tuple(Permutations({name: 100}, seed)(zero, place).tolist())
        for name in ("a", "b", "é")
        for seed in (0, 1, 2**62)
    }
    assert len(found) == 9


@PROPERTY
@given(data=st.data(), sources=st.integers(1, 30))
def test_quantised_weights(data: st.DataObject, sources: int) -> None:
    weights = data.draw(mixtures(sources))
    units = quantise(weights)
    assert list(units) == list(weights)
    assert sum(units.values()) == SCALE
    assert all(abs(units[n] - weights[n] * SCALE) <= 1.0001 for n in weights)
    assert all(units[n] > 0 for n in weights if weights[n] >= 1e-6)
    assert quantise(units) == units
    assert quantise({n: u / SCALE for n, u in units.items()}) == units


def test_integer_weights_and_absent_names() -> None:
    by_unit = MixtureOrder(
        sizes_of(3), 0, [Segment(0, {"s0": SCALE // 4, "s2": SCALE * 3 // 4}, 8)]
    )
    by_share = MixtureOrder(sizes_of(3), 0, [Segment(0, {"s0": 0.25, "s1": 0, "s2": 0.75}, 8)])
    np.testing.assert_array_equal(by_unit.batch(0, 100), by_share.batch(0, 100))
    assert by_unit.drawn(80) == {"s0": 20, "s1": 0, "s2": 60}


def test_the_later_of_two_segments_at_one_sample_holds() -> None:
    order = MixtureOrder(sizes_of(2), 0, [Segment(0, {"s0": 1.0}, 4), Segment(0, {"s1": 1.0}, 4)])
    assert order.drawn(40) == {"s0": 0, "s1": 40}


@pytest.mark.parametrize(
    ("sizes", "schedule", "message"),
    [
        ({"a": 0}, [Segment(0, {"a": 1.0}, 1)], "at least 1"),
        ({"a": 9}, [], "sample 0"),
        ({"a": 9}, [Segment(5, {"a": 1.0}, 1)], "sample 0"),
        ({"a": 9}, [Segment(0, {"a": 1.0}, 0)], "quantum"),
        ({"a": 9}, [Segment(0, {"b": 1.0}, 1)], "no source 'b'"),
        ({"a": 9}, [Segment(0, {"a": 0.9}, 1)], "sum to 0.9"),
        ({"a": 9, "b": 9}, [Segment(0, {"a": 1.5, "b": -0.5}, 1)], "-0.5"),
        ({"a": 9}, [Segment(0, {"a": float("nan")}, 1)], "nan"),
        (
            {"a": 9},
            [Segment(0, {"a": 1.0}, 1), Segment(9, {"a": 1.0}, 1), Segment(8, {"a": 1.0}, 1)],
            "comes after",
        ),
    ],
)
def test_bad_input_is_refused(sizes: dict[str, int], schedule: list[Segment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureOrder(sizes, 0, schedule)


def test_negative_places_are_refused() -> None:
    order = MixtureOrder({"a": 9}, 0, [Segment(0, {"a": 1.0}, 2)])
    for start, count in ((-1, 2), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            order.batch(start, count)
    with pytest.raises(ValueError, match="negative"):
        order.drawn(-1)
    assert order.batch(3, 0)[0].size == 0

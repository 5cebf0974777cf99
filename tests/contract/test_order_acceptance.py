"""Whatever lies there, reading an order never raises; only a legal one is followed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixloop.common.files import writable_by_others
from mixloop.common.json_records import decode, encode
from mixloop.contract import (
    SCALE,
    Limits,
    Order,
    RejectedOrder,
    Rejection,
    SegmentLine,
    Stage,
    decode_line,
    encode_line,
    quantise,
    read_order,
    unpublishable,
    write_order,
)
from mixloop.contract.orders import LARGEST_JUMP, LARGEST_ORDER, LARGEST_TURN

SOURCES = ("web", "code", "math")
AFTER = (3, 6)
ORDER = Order(
    run="smol-1",
    fence=3,
    generation=7,
    weights={"web": 0.55, "code": 0.35, "math": 0.1},
    then=(
        Stage(10_000, {"web": 0.4, "code": 0.4, "math": 0.2}),
        Stage(20_000, {"web": 0.3, "code": 0.4, "math": 0.3}),
    ),
    decision="d-000012",
    policy="rules",
    reason="gsm8k flat over 3 evaluations {finemath}: „math“ +0.05",
    issued_at="2026-11-24T18:00:00Z",
)
PROPERTY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read(path: Path, **changes: Any) -> Order | Rejection | None:
    arguments: dict[str, Any] = {"run": "smol-1", "sources": SOURCES, "after": AFTER} | changes
    return read_order(path, **arguments)


def seal(body: dict[str, Any]) -> bytes:
    """The file of a body with the right checksum, computed as the design says."""
    rest = {key: value for key, value in body.items() if key != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    rest["checksum"] = "sha256:" + hashlib.sha256(canonical).hexdigest()
    return json.dumps(rest).encode()


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    path = tmp_path / "mixture.json"
    write_order(path, ORDER)
    return path


@pytest.fixture
def body(mixture: Path) -> dict[str, Any]:
    found = json.loads(mixture.read_bytes())
    assert isinstance(found, dict)
    return found


def test_an_order_comes_back_as_it_was_written(mixture: Path, body: dict[str, Any]) -> None:
    assert read(mixture) == ORDER
    assert next(iter(body)) == "schema"
    mixture.write_bytes(seal(body))  # the checksum is the one the design describes
    assert read(mixture) == ORDER


def test_no_news(mixture: Path, tmp_path: Path) -> None:
    assert read(tmp_path / "absent.json") is None
    assert read(tmp_path / "absent" / "mixture.json") is None
    assert read(tmp_path / "nul\0.json") is None
    assert read(mixture, after=(3, 7)) is None
    mixture.write_bytes(b"")
    assert read(mixture) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_no_news(mixture: Path) -> None:
    mixture.chmod(0)
    assert read(mixture) is None


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ((4, 6), "fence 3 is below 4"),
        ((4, 7), "fence 3 is below 4"),
        ((3, 8), "generation 7 is below 8"),
        ((2, 8), "generation 7 is below 8"),
    ],
)
def test_neither_fence_nor_generation_goes_back(
    mixture: Path, after: tuple[int, int], reason: str
) -> None:
    found = read(mixture, after=after)
    assert isinstance(found, Rejection)
    assert reason in found.reason
    assert (found.fence, found.generation) == (3, 7)
    assert found.digest == "sha256:" + hashlib.sha256(mixture.read_bytes()).hexdigest()


@pytest.mark.parametrize("most", [LARGEST_TURN, 2**62, 2**63 - 1])
def test_what_is_accepted_or_refused_can_be_read_again(tmp_path: Path, most: int) -> None:
    """One such order made every later heartbeat, and the schedule, unreadable."""
    path = tmp_path / "mixture.json"
    write_order(path, replace(ORDER, fence=most, generation=most))
    found = read(path, after=(most - 1, most - 1))
    assert isinstance(found, Order) == (most == LARGEST_TURN)
    assert found is not None
    line = SegmentLine(1, 0, 0, {"web": SCALE}, found.fence or 0, found.generation or 0)
    assert decode_line(encode_line(line)) == line
    refused = RejectedOrder("no", "", found.fence, found.generation)
    assert decode(RejectedOrder, encode(refused)) == refused


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ((3 + LARGEST_JUMP, 6 + LARGEST_JUMP), None),
        ((4 + LARGEST_JUMP, 7), f"fence {4 + LARGEST_JUMP} is more than {LARGEST_JUMP} above 3"),
        ((3, 7 + LARGEST_JUMP), f"generation {7 + LARGEST_JUMP} is more than"),
        ((4 + LARGEST_JUMP, 6), "fence"),
    ],
)
def test_neither_fence_nor_generation_goes_far_ahead(
    tmp_path: Path, turn: tuple[int, int], reason: str | None
) -> None:
    path = tmp_path / "mixture.json"
    write_order(path, replace(ORDER, fence=turn[0], generation=turn[1]))
    found = read(path)
    assert isinstance(found, Rejection) == (reason is not None)
    if isinstance(found, Rejection):
        assert str(reason) in found.reason


def test_an_order_of_thousands_of_sources_with_a_plan_is_read(tmp_path: Path) -> None:
    weights = {f"source-{n:05d}": 1 / 4096 for n in range(4096)}
    order = Order("r", 1, 1, weights, tuple(Stage(n, weights) for n in range(1, 8)))
    path = tmp_path / "mixture.json"
    write_order(path, order)
    assert path.stat().st_size > 2**20
    assert unpublishable(order) is None
    assert read(path, run="r", sources=tuple(weights), after=(0, 0)) == order
    assert isinstance(read(path, run="r", sources=tuple(weights)[1:], after=(0, 0)), Rejection)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reason": "R" * 10_001}, "reason has 10,001 characters: the most is 10,000"),
        ({"policy": "R" * 10_001}, "policy has"),
        ({"decision": "d" * 201}, "decision has 201 characters: the most is 200"),
        ({"issued_at": "d" * 201}, "issued_at has"),
        ({"reason": "half a \ud800 pair"}, "surrogate"),
        ({"weights": {"web": float("nan")}}, "a weight is no number"),
        ({"weights": {"web": 0.5}}, "weights sum to 0.5, not to 1"),
        ({"weights": {"x" * LARGEST_ORDER: 1.0}}, "bytes: the most is"),
        ({"then": tuple(Stage(n, {"web": 1.0}) for n in range(1001))}, "then has 1,001 stages"),
        ({"then": (Stage(2**63, {"web": 1.0}),)}, "from_tokens"),
        ({"generation": LARGEST_TURN + 1}, "generation is"),
        ({"reason": "R" * 10_000, "then": ORDER.then}, None),
    ],
)
def test_what_no_trainer_would_read_is_known_before_it_is_published(
    tmp_path: Path, changes: dict[str, Any], why: str | None
) -> None:
    order = replace(ORDER, **changes)
    found = unpublishable(order)
    assert (found is None) == (why is None)
    if why is None:
        return
    assert why in str(found)
    path = tmp_path / "mixture.json"
    with contextlib.suppress(ValueError):  # NaN is never written
        write_order(path, order)
        assert isinstance(read(path), Rejection)


def test_a_new_fence_republishes_what_is_in_force(mixture: Path) -> None:
    assert read(mixture, after=(2, 7)) == ORDER
    assert read(mixture, after=(2, 7), in_force=ORDER.weights) == ORDER
    assert read(mixture, after=(2, 7), in_force=ORDER.then[0].weights) == ORDER
    tight = Limits(cap=0.4, max_change=0.0)  # narrowed since: the same order still raises the fence
    assert read(mixture, after=(2, 7), in_force=ORDER.weights) == ORDER
    assert isinstance(read(mixture, after=(2, 6), limits=tight), Rejection)
    found = read(mixture, after=(2, 7), in_force={"web": 1.0})
    assert isinstance(found, Rejection)
    assert "other weights" in found.reason


def test_a_new_fence_republishes_a_mixture_of_many_sources(tmp_path: Path) -> None:
    shares = [1 / (7 + (13 * i) % 401) for i in range(400)]
    weights = {f"s{i}": share / sum(shares) for i, share in enumerate(shares)}
    in_force = {name: weight / SCALE for name, weight in quantise(weights).items()}
    path = tmp_path / "mixture.json"
    order = Order("smol-1", 3, 7, weights)
    write_order(path, order)
    assert sum(abs(weights[n] - in_force[n]) for n in weights) / 2 > 1e-6  # rounding alone
    assert read(path, sources=weights, after=(2, 7), in_force=in_force) == order
    other = in_force | {"s0": in_force["s0"] - 1e-4, "s1": in_force["s1"] + 1e-4}
    assert isinstance(read(path, sources=weights, after=(2, 7), in_force=other), Rejection)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(floor=0.11), "weights: math at 0.1 is under the floor 0.11"),
        (Limits(cap=0.5), "weights: web at 0.55 is over the cap 0.5"),
        (Limits(max_change=0.1), "weights: a change of 0.35 is over the largest allowed 0.1"),
        (Limits(max_change=0.0), "largest allowed 0"),
    ],
)
def test_the_trainer_has_bounds_of_its_own(mixture: Path, limits: Limits, reason: str) -> None:
    found = read(mixture, limits=limits, in_force={"web": 0.9, "code": 0.1})
    assert isinstance(found, Rejection)
    assert reason in found.reason


def test_bounds_that_just_hold(mixture: Path) -> None:
    limits = Limits(floor=0.1, cap=0.55, max_change=0.35)
    assert read(mixture, limits=limits, in_force={"web": 0.9, "code": 0.1}) == ORDER
    assert read(mixture, limits=replace(limits, max_change=0.15)) == ORDER  # nothing in force yet


def test_a_floor_skips_sources_without_weight(tmp_path: Path) -> None:
    path = tmp_path / "mixture.json"
    order = Order("smol-1", 3, 7, {"web": 1.0, "code": 0.0})
    write_order(path, order)
    assert read(path, limits=Limits(floor=0.05)) == order


def test_stages_meet_the_same_bounds(mixture: Path) -> None:
    found = read(mixture, limits=Limits(max_change=0.12), in_force=ORDER.weights)
    assert isinstance(found, Rejection)
    assert found.reason.startswith("then[0] weights: a change of 0.15")


def test_the_owner_must_be_the_folders(mixture: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(mixture, 12345, -1)
    found = read(mixture)
    assert isinstance(found, Rejection)
    assert "uid 12345" in found.reason
    assert read(mixture, accept_uid=12345) == ORDER
    os.chown(mixture.parent, 12345, -1)
    assert read(mixture) == ORDER


def test_a_folder_others_may_write_is_warned_about(mixture: Path) -> None:
    assert writable_by_others(mixture) is None
    for mode in (0o664, 0o646):
        mixture.chmod(mode)
        assert "chmod go-w" in str(writable_by_others(mixture))
        assert read(mixture) == ORDER  # a warning: on some file systems every file looks so
    assert writable_by_others(mixture.parent / "absent") is None


# --- malformed files -------------------------------------------------------------------------


def wrong_values() -> Iterator[tuple[str, Any]]:
    """Top-level keys and values they must not have."""
    nothing: tuple[Any, ...] = (None, True, False, [], {}, "", "x", 1.5, -1, 2**63, 10**300, [[]])
    for key in ("schema", "run", "fence", "generation"):
        for value in nothing:
            yield key, value
    no_text: tuple[Any, ...] = (None, True, 1, 1.5, [], {}, "\ud800")
    for key in ("decision", "policy", "reason", "issued_at"):
        for value in no_text:
            yield key, value
    for value in (None, True, 0, 1, "x", [], [1], {}):
        yield "weights", value
    for value in (None, True, 1, "x", {}, [1], [None], [[]], [{}], [{"from_tokens": 5}]):
        yield "then", value
    yield from [("generation", 0), ("generation", 5), ("generation", 7.0), ("fence", 2)]
    yield from [("run", "smol-2"), ("run", "smol-1 "), ("schema", "mixloop/order/2")]


def wrong_mixtures() -> Iterator[dict[str, Any]]:
    """Weights that are none."""
    legal = dict(ORDER.weights)
    no_share: tuple[Any, ...] = (
        -0.1, 1.1, True, False, None, "0.5", [0.5], {}, float("nan"), float("inf"),
        float("-inf"), 10**400, -1, 2, 0.0,
    )  # fmt: skip
    for name in SOURCES:
        for value in (*no_share, legal[name] + 2e-6, legal[name] - 2e-6):
            yield legal | {name: value}
    yield legal | {"unknown": 0.0}
    yield {"web": 0.5, "unknown": 0.5}
    yield {"Web": 0.55, "code": 0.35, "math": 0.1}
    yield {"web": 0.55, "code": 0.35}
    yield {"web": 1.2, "code": -0.2}
    yield dict.fromkeys(SOURCES, 0.0)
    yield {"": 1.0}


def wrong_bodies(body: dict[str, Any]) -> Iterator[bytes]:
    """Well-formed JSON with a right checksum and something wrong in it."""
    for key, value in wrong_values():
        yield seal(body | {key: value})
    for key in ("schema", "run", "fence", "generation", "weights"):
        yield seal({k: v for k, v in body.items() if k != key})
    for weights in wrong_mixtures():
        yield seal(body | {"weights": weights})
        stage = {"from_tokens": 10_000, "weights": weights}
        yield seal(body | {"then": [stage]})
    for starts in ([10, 10], [20, 10], [-1], [True], [1.5], ["10"], [None], [2**70]):
        yield seal(
            body
            | {"then": [{"from_tokens": start, "weights": body["weights"]} for start in starts]}
        )


def wrong_checksums(body: dict[str, Any]) -> Iterator[bytes]:
    right = str(body["checksum"])
    rest = {k: v for k, v in body.items() if k != "checksum"}
    yield json.dumps(rest).encode()
    wrong: tuple[Any, ...] = (right[7:], right.upper(), right + "0", "", None, 0, True, [right])
    for value in wrong:
        yield json.dumps(body | {"checksum": value}).encode()
    for key, value in (("fence", 4), ("generation", 8), ("reason", "x"), ("extra", 1)):
        yield json.dumps(body | {key: value}).encode()
    changed = copy.deepcopy(body)
    changed["weights"] |= {"web": 0.65, "code": 0.25}
    yield json.dumps(changed).encode()


def not_orders(data: bytes) -> Iterator[bytes]:
    """Bytes that are no order at all, or one spoilt by hand."""
    text = data.decode()
    yield from (b"null", b"true", b"1", b'"x"', b"[]", b"{}", b"[{}]", b"NaN", b"hello", b"}")
    yield from (data.replace(b"{", b"[", 1), data[1:], data + data, data + b"x", data + b"}")
    yield from (b"\xff\xfe" + data, data.decode().encode("utf-16"), b"\xef\xbb\xbf" + data)
    yield data.replace(b"rules", b"ru\xffes")
    yield b"\0" * len(data)
    yield data[:200] + b"\0" * (len(data) - 200)
    yield b"[" * 100_000 + b"]" * 100_000
    yield b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    yield text.replace('"run"', '"weights": {"web": 1.0}, "run"').encode()
    yield text.replace('"fence": 3', '"fence": 3, "fence": 3').encode()
    yield text.replace('"web": 0.55', '"web": 0.55, "web": 0.55').encode()
    yield text.replace("0.55", "NaN").encode()
    yield text.replace("0.55", "Infinity").encode()
    yield text.replace("0.55", "1e999").encode()
    yield text.replace("0.55", "9" * 5000).encode()
    yield text.replace('"fence": 3', '"fence": ' + "9" * 5000).encode()
    yield data + b" " * LARGEST_ORDER
    yield b"x" * (LARGEST_ORDER + 1)
    yield text.replace("rules", "r" * 2**20).encode()
    yield text.replace("rules", "ru\nles").encode()


def bit_flips(data: bytes) -> Iterator[bytes]:
    chance = random.Random(1)
    for _ in range(400):
        spoilt = bytearray(data)
        spoilt[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(spoilt)


def torn(data: bytes) -> Iterator[bytes]:
    kept = data.rstrip()
    yield from (kept[:length] for length in range(len(kept)))


def same_meaning(data: bytes, body: dict[str, Any]) -> bool:
    """Whether spoilt bytes still say exactly what the order said (blanks changed, say)."""
    try:
        return bool(json.loads(data) == body)
    except (ValueError, RecursionError):
        return False


def test_hundreds_of_malformed_files(mixture: Path, body: dict[str, Any]) -> None:
    good = mixture.read_bytes()
    files = [*wrong_bodies(body), *wrong_checksums(body), *not_orders(good), *bit_flips(good)]
    assert len(set(files)) > 600
    rejected = 0
    for data in files:
        mixture.write_bytes(data)
        found = read(mixture)
        if same_meaning(data, body):
            assert found == ORDER or not isinstance(found, Order)
            continue
        assert not isinstance(found, Order), data[:300]
        if isinstance(found, Rejection):
            rejected += 1
            assert found.reason.isprintable()
            assert len(found.reason) < 400
            found.reason.encode()
    assert rejected > 500


def test_every_wrong_value_is_rejected_with_a_reason(mixture: Path, body: dict[str, Any]) -> None:
    for data in [*wrong_bodies(body), *wrong_checksums(body)]:
        mixture.write_bytes(data)
        assert isinstance(read(mixture), Rejection), data[:300]


def test_a_torn_file_is_no_news_wherever_it_ends(mixture: Path) -> None:
    for data in torn(mixture.read_bytes()):
        mixture.write_bytes(data)
        assert read(mixture) is None, data[-40:]


@PROPERTY
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mixture.json"
    path.write_bytes(data)
    assert not isinstance(read(path), Order)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@PROPERTY
@given(key=st.sampled_from(["run", "fence", "generation", "weights", "then", "x"]), value=JSON)
def test_any_value_under_a_right_checksum(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "mixture.json"
    write_order(path, ORDER)
    path.write_bytes(seal(json.loads(path.read_bytes()) | {key: value}))
    found = read(path)
    if not isinstance(found, Order):
        return
    assert found.run == "smol-1"
    assert found.fence >= AFTER[0]
    assert found.generation > AFTER[1]
    for weights in (found.weights, *(stage.weights for stage in found.then)):
        assert set(weights) <= set(SOURCES)
        assert abs(sum(weights.values()) - 1) <= 1.1e-6


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    other = path.with_name("elsewhere.json")
    write_order(other, ORDER)
    path.symlink_to(other)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("make", [make_folder, make_link, make_loop, os.mkfifo, make_socket])
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "m.json"
    make(path)
    found = read(path)
    assert not isinstance(found, Order)
    if not stat.S_ISSOCK(path.lstat().st_mode):
        assert isinstance(found, Rejection)
        assert "remove it" in found.reason


def test_weird_arguments_do_not_raise_either(mixture: Path) -> None:
    class Broken(frozenset[str]):
        def __contains__(self, item: object) -> bool:
            raise RuntimeError("broken")

    found = read(mixture, sources=Broken(SOURCES))
    assert isinstance(found, Rejection)
    assert "RuntimeError" in found.reason

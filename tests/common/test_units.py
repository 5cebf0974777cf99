"""Token counts as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from mixloop.common.units import Tokens, format_tokens, parse_tokens


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("11T", 11 * 10**12),
        ("11t", 11 * 10**12),
        ("250B", 250 * 10**9),
        ("1.5B", 1_500_000_000),
        ("2M", 2_000_000),
        ("1.5M", 1_500_000),
        ("400k", 400_000),
        ("0.1 B", 10**8),
        (" 0.1B ", 10**8),
        ("1e6", 10**6),
        ("2e3", 2000),
        ("1,000,000", 10**6),
        ("1_000_000", 10**6),
        ("1000.0", 1000),
        ("1e18", 10**18),
        (7, 7),
        (0, 0),
        (10**18, 10**18),
        (1e6, 10**6),
        (2e9, 2 * 10**9),
    ],
)
def test_token_counts(value: Any, count: int) -> None:
    assert parse_tokens(value) == count
    assert TypeAdapter(Tokens).validate_python(value) == count


@pytest.mark.parametrize(
    "value",
    [
        *("", "T", "M", "two", "5X", "2G", "0.1k1", "1 2", "_", "nan", "inf", "-3", "-1", "1.5"),
        *("0.0001k", "1e-5", "1e19", "1e99", "9" * 5000, "1." + "0" * 40 + "1"),
        *("1e999999999", "1e-999999999", "1e999999999t", "-1e999999999"),
        *(
            -1,
            0.5,
            1e19,
            float("nan"),
            float("inf"),
            10**19,
            pytest.param(16**5000, id="huge"),
            True,
            None,
            [1],
        ),
    ],
)
@pytest.mark.timeout(5)
def test_what_is_no_token_count(value: Any) -> None:
    words = r"^.{1,210} is not a token count: write a whole number, .* 11T$"
    with pytest.raises(ValueError, match=words):
        parse_tokens(value)


def test_tokens_are_written_short() -> None:
    words = [format_tokens(n) for n in (0, 950, 1234, 8 * 10**12, 1_230_000, 999_999)]
    assert words == ["0", "950", "1.23k", "8T", "1.23M", "1M"]

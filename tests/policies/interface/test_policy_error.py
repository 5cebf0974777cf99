"""A policy's own error, told in one line with the line of its own code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixloop.policies.interface import Experiment, PolicyError, load_policy, raised

OWN = """
import json


class Breaks:
    def decide(self, observation):
        return self.helper("{")

    def helper(self, text):
        return json.loads(text)


class Unbuilt:
    def __init__(self):
        self.left = 1 / 0
"""


def caught(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011 - any
        call()
    return error.value


def test_the_line_is_the_policys_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    policy = load_policy("./own.py:Breaks", {}, base=tmp_path)
    error = caught(lambda: policy.decide(None))  # type: ignore[arg-type]
    assert raised(error, type(policy)).startswith("JSONDecodeError: Expecting property name")
    assert raised(error, type(policy)).endswith("(own.py line 10)")
    built = caught(lambda: load_policy("./own.py:Unbuilt", {}, base=tmp_path))
    assert isinstance(built, PolicyError)
    assert "ZeroDivisionError: division by zero while it was built (own.py line 15)" in str(built)


def test_elsewhere_the_place_is_named_too_and_long_texts_are_cut() -> None:
    assert "(decoder.py line" in raised(caught(lambda: json.loads("")), math)
    assert raised(ValueError("one\ntwo"), None) == "ValueError: one"
    assert len(raised(ValueError("x" * 10_000), None)) < 400


def test_an_answer_that_can_not_be_built_says_which_field() -> None:
    error = caught(lambda: Experiment([], 1000, "nothing to try"))
    said = raised(error, Experiment)
    assert said.startswith("ValidationError: Experiment: branches: ")
    assert "at least 1 item" in said

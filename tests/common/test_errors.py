"""One explainer of validation errors: the key, the value, what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mixloop.common.errors import explain_error, one_line


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    step: float = Field(gt=0)
    name: str = "x"

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name == "quoted":
            raise ValueError("'quoted' is no name")
        if name == "bad":
            raise ValueError("give another")
        return name


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parts: list[Part] = []
    by_name: Mapping[str, Part] = {}
    maybe: Part | None = None
    options: dict[str, Any] = Field(default_factory=dict, alias="with")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"part": 1}, "part: unknown key (value 1); did you mean 'parts'?"),
        ({"wiht": {}}, "wiht: unknown key (value {}); did you mean 'with'?"),
        ({"zzz": 1}, "zzz: unknown key (value 1); known: by_name, maybe, parts, with"),
        (
            {"parts": [{"step": 1, "stepp": 2}]},
            "parts.0.stepp: unknown key (value 2); did you mean 'step'?",
        ),
        (
            {"by_name": {"any": {"step": 1, "nam": 2}}},
            "by_name.any.nam: unknown key (value 2); did you mean 'name'?",
        ),
        (
            {"maybe": {"stp": 1}},
            "maybe.stp: unknown key (value 1); did you mean 'step'? (and 1 more)",
        ),
        ({"maybe": {}}, "maybe.step: missing; give it a value"),
        ({"maybe": {"step": -1}}, "maybe.step: input should be greater than 0 (value -1)"),
        ({"maybe": {"step": 1, "name": "bad"}}, "maybe.name: give another (value 'bad')"),
        ({"maybe": {"step": 1, "name": "quoted"}}, "maybe.name: 'quoted' is no name"),
        ({"parts": {}}, "parts: must be a list, as in [a, b]"),
    ],
)
def test_key_value_and_mend(data: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(data)
    assert explain_error(caught.value, Part, Whole) == said
    assert "\n" not in explain_error(caught.value)


def test_the_place_and_the_word_for_a_key_are_the_callers() -> None:
    with pytest.raises(ValidationError) as caught:
        Part.model_validate({"step": 1, "nam": "y" * 10_000})
    said = explain_error(caught.value, Part, prefix="policy.with", what="option")
    assert said.startswith("policy.with.nam: unknown option (value 'yyy")
    assert said.endswith("); did you mean 'name'?")
    assert len(said) < 400


def test_a_message_is_told_whole_in_one_line() -> None:
    assert one_line(ValueError("a file\n  of two lines")) == "a file of two lines"
    assert one_line(KeyError("name")) == "KeyError: 'name'"
    assert one_line(EOFError()) == "EOFError"

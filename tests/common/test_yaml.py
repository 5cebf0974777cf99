"""What YAML can say that no run file may."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mixloop.common.errors import BadInput
from mixloop.common.yaml import parse_mapping, parse_value, parse_yaml, read_sections

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
)
DIGITS = "9" * 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"policy:\n  with: {{{BOMB.replace(chr(10), ', ')}}}", "anchors unfold to more than"),
        (BOMB, "anchors unfold to more than 100,000 values"),
        (MERGED, "anchors unfold to more than 100,000 values"),
        ("policy:\n  with: &r\n    me: *r", "line 2, column 9: an anchor stands within itself"),
        ("a: &r [*r]", "line 1, column 4: an anchor stands within itself"),
        ("a: &r [{b: [*r]}]", "an anchor stands within itself"),
        ("? &r [*r]\n: 1", "an anchor stands within itself"),
        ("[" * 1200, "nested too deeply"),
        ("a: 1\na: 2", "key 'a' is given twice (line 2)"),
        (f"a: {'9' * 5000}", "Exceeds the limit"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("run: {dir: \"ru\\0n\"}", "run.dir: 'ru\\x00n' holds a NUL or half of a character"),
        ('sources: {"a\\0b": {path: x}}', "sources.a\\x00b: 'a\\x00b' holds a NUL"),
        ('evals: {every: ["a", "\\ud800"]}', "evals.every.1: '\\ud800' holds a NUL or half"),
        ("run: {seed: 0x1" + "0" * 16 + "}", "run.seed: 18446744073709551616 is a larger number"),
        (f"policy: {{with: {{a: [-{DIGITS}]}}}}", "policy.with.a.0: -999"),
        (f"{DIGITS}: a", "is a larger number than any setting takes (2^64 - 1)"),
    ],
)  # fmt: skip
def test_what_no_run_file_may_say_is_told_at_once(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(BadInput) as told:
        read_sections(path)
    assert time.monotonic() - began < 5
    assert str(told.value).startswith(f"{path}: ")
    assert said in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    assert len(str(told.value)) < 500


def test_anchors_are_taken_where_they_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [*a, *a]\nd: 18446744073709551615"
    (tmp_path / "run.yaml").write_text(text)
    a = {"x": 1, "y": [1, 2]}
    assert read_sections(tmp_path / "run.yaml") == {
        **{"a": a, "b": {"x": 2, "y": [1, 2]}, "c": [a, a], "d": 2**64 - 1}
    }
    # many values are no bomb: only what anchors add counts
    monkeypatch.setattr("mixloop.common.yaml._UNFOLDED", 100)
    assert len(parse_yaml("[" + "1," * 200 + "]")) == 200
    assert len(parse_yaml("[&a [" + "1," * 50 + "], *a]")) == 2
    with pytest.raises(ValueError, match="more than 100 values"):
        parse_yaml("[&a [" + "1," * 50 + "], *a, *a]")


@pytest.mark.parametrize("text", ["&r [*r]", "[" * 1200, "{a: 1, a: 2}", BOMB, "9" * 5000])
def test_options_of_a_command_are_read_alike(text: str) -> None:
    with pytest.raises(BadInput, match=r"--guard: .* is no YAML value") as told:
        parse_value(text, "--guard")
    assert len(str(told.value)) < 500
    with pytest.raises(BadInput, match="--with: ") as told:
        parse_mapping(text, "--with")
    assert len(str(told.value)) < 500

"""What a person is shown of a text from data."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from mixloop.common.log import say
from mixloop.common.text import clean, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202egnp.exe", "agnp.exe"),  # shown as "aexe.png"
        ("\u2066one\u2069 \u200ftwo\u061c", "one two"),
        ("pass\u200bword\u2060 \ufeffso\u00adft", "password soft"),
        ("web\u3164 we\u034fb\ufe0f", "web web"),
        ("tag\U000e0041\U000e007f", "tag"),
        ("one\ntwo\u2028three\u2029four", "one two three four"),
        ("\x1b[31m\x9b31m\x85\ud800", "[31m31m"),
        ("Grüße, 数学 → ½ עברית عربي é e\u0301 🙂", "Grüße, 数学 → ½ עברית عربي é e\u0301 🙂"),
    ],
)
def test_nothing_unseen_is_left(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(text) == shown
    say(text)
    assert capsys.readouterr().err == f"mixloop train: {shown}\n"
    whole = json.dumps([text], ensure_ascii=False)
    assert json.loads(visible_json(whole)) == [text]
    if shown != text:
        assert "\\u" in visible_json(whole)


def test_whatever_unicode_calls_a_format_or_a_control_is_taken_out() -> None:
    # signs that stand around digits of Arabic and the like are seen
    seen = {chr(c) for c in (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2)}
    seen |= {chr(c) for c in (0x110BD, 0x110CD, *range(0x13430, 0x13440))}
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    every = {chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in kinds}
    assert {c for c in every - seen if clean(c).strip(" ") == c} == {"\t"}

"""Lines for a person cost nothing."""

from __future__ import annotations

import io
import sys

import pytest

from mixloop.common.log import say


@pytest.mark.parametrize("error", [OSError(28, "No space"), ValueError("closed file")])
def test_what_cannot_be_said_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    monkeypatch.setattr(sys, "stderr", Broken())
    say("unheard")

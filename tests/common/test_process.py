"""What asks a process to end."""

from __future__ import annotations

import signal

import pytest

from mixloop.common.process import handling, interrupt, stop_signals


def test_a_hangup_asks_to_stop_unless_nohup_says_otherwise() -> None:
    heard: list[int] = []
    before = signal.getsignal(signal.SIGHUP)
    with handling([signal.SIGHUP], signal.SIG_DFL):
        asked = stop_signals()
        with handling(asked, lambda number, _: heard.append(number)):
            for number in asked:
                signal.raise_signal(number)
    with handling([signal.SIGHUP], signal.SIG_IGN):
        assert stop_signals() == (signal.SIGTERM, signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) == before


def test_a_signal_may_end_things_as_ctrl_c_does() -> None:
    with handling([signal.SIGTERM], interrupt), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)

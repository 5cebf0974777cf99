"""What asks a process to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from mixloop.common.process import StopRequest, handling, interrupt, stop_signals


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


@pytest.mark.timeout(60)
def test_a_wish_to_stop_may_interrupt_the_wait_for_one() -> None:
    stop = StopRequest()

    def ask(number: int, frame: object) -> None:
        stop.set()
        stop.__init__()  # type: ignore[misc]  # as if nobody had asked

    with handling([signal.SIGVTALRM], ask):
        signal.setitimer(signal.ITIMER_VIRTUAL, 7e-4, 7e-4)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            stop.wait(1e-6)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    began = time.monotonic()
    stop.set()
    stop.wait(30)
    assert stop.is_set()
    assert time.monotonic() - began < 10


WAITS = """
import signal
from mixloop.common.process import StopRequest
stop = StopRequest()
signal.signal(signal.SIGCONT, lambda *_: None)  # what goes on interrupts the wait
print("waiting", flush=True)
stop.wait(0.5)
print("over", stop.is_set(), flush=True)
"""


@pytest.mark.timeout(60)
def test_a_wait_ends_where_the_process_was_stopped_meanwhile() -> None:
    command = [sys.executable, "-c", WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        try:
            assert process.communicate(timeout=20)[0] == "over False\n"
        finally:
            process.kill()

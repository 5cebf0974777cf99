"""``python wrong_clock.py YEARS control RUN.yaml``: the command on a machine whose clock is off."""

from __future__ import annotations

import datetime as real
import sys
import time
from typing import Any

YEAR = 365 * 86_400

off = int(sys.argv.pop(1)) * YEAR
_now, _now_ns = time.time, time.time_ns
time.time = lambda: _now() + off
time.time_ns = lambda: _now_ns() + off * 10**9

from mixloop.cli.app import main  # noqa: E402
from mixloop.controller.journal import journal  # noqa: E402


class Wrong(real.datetime):
    """The clock of that machine."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return real.datetime.now(tz) + real.timedelta(seconds=off)


journal.datetime = Wrong  # type: ignore[misc]
main()

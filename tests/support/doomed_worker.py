"""An evaluation worker that is killed or stopped at its Nth step that others can see.

Given as ``evals.launcher: [python, doomed_worker.py, N, kill or stop, FOLDER, "{command}"]``. Steps
are what Python's audit hooks tell of: a file opened for writing, renamed or removed, a folder made,
a process started; and each word to the controller. ``N`` counts from 1 where the settings have been
read; the first time only, which a file in FOLDER remembers; how many there were in all is written
there once all is done.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR
_STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen", "os.fork")


def main() -> None:
    nth, fate, place = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    del sys.argv[1:]
    met, count = place / "met", [0]

    def step() -> None:
        count[0] += 1
        if count[0] == nth and not met.exists():
            os.close(os.open(met, os.O_CREAT | os.O_RDONLY))
            os.kill(os.getpid(), signal.SIGKILL if fate == "kill" else signal.SIGSTOP)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if opened and "__pycache__" in str(arguments[0]):
            return
        if opened or event in _STEPS:
            step()

    from mixloop.evals.workers import worker

    send = worker.Channel.send

    def tell(self: Any, event: str, **content: Any) -> None:
        step()
        send(self, event, **content)
        step()
        if event == "done":
            (place / "steps").write_text(str(count[0]))

    worker.Channel.send = tell  # type: ignore[method-assign]
    sys.addaudithook(hook)
    worker.main()


if __name__ == "__main__":
    main()

"""The MLflow drain, killed at its Nth request to the server, over and over.

``python doomed_drain.py REQUEST``: for each number on the standard input a process is forked that
drains as the daemon's child does and is killed before it sends that request (so that all before it
have been answered and the last was not told). A line of JSON each: exit status, what it said.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def drain(nth: int, request: str, channel: int) -> None:
    from mixloop.controller.tracking import drain_process

    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "http.client.send":
            return
        count[0] += 1
        if count[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    os.dup2(channel, 1)
    sys.argv = ["drain_process", request]
    drain_process.main()


def main() -> None:
    import mlflow
    import mlflow.entities
    import mlflow.store.tracking.rest_store  # noqa: F401

    request = sys.argv[1]
    for text in sys.stdin:
        out, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(out)
            code = 1
            try:
                drain(int(text), request, end)
            except SystemExit as ended:
                code = int(ended.code or 0)
            os._exit(code)
        os.close(end)
        with os.fdopen(out) as said:
            lines = said.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status, "said": [json.loads(one) for one in lines]}))  # noqa: T201
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""How long the sandbox takes for HumanEval's 164 canonical programs.

    .venv/bin/python bench/sandbox.py [--repeats 5]

Landlock and bubblewrap, as the user who runs this and, for root, as an ordinary user too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable

from mixloop.evals import sandbox_server
from mixloop.evals.items import load_items
from mixloop.evals.sandbox import MEMORY, Sandbox
from mixloop.evals.settings import SandboxMode

ORDINARY = 12345


def canonical_programs() -> list[str]:
    """Every problem with its own solution and tests."""
    return [
        f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})"
        for row in load_items("humaneval", "packages").rows
    ]


def timed(repeats: int, once: Callable[[], int]) -> tuple[list[float], int]:
    """Seconds of each repeat, and how many programs passed in the worst of them."""
    seconds, passed = [], []
    for _ in range(repeats):
        began = time.monotonic()
        passed.append(once())
        seconds.append(time.monotonic() - began)
    return seconds, min(passed)


def as_ordinary_user(repeats: int, programs: list[str]) -> tuple[list[float], int]:
    """The server's loop in a child: another user may have no way to root's interpreter."""
    with tempfile.TemporaryDirectory() as private:
        os.chown(private, ORDINARY, ORDINARY)
        config = {"timeout": 3.0, "memory": MEMORY, "locked": True, "landlock": True, "drop": True}
        config["tmp"] = private
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(ORDINARY, ORDINARY, ORDINARY)
            os.setresuid(ORDINARY, ORDINARY, ORDINARY)
            run = sandbox_server.run_program
            found = timed(repeats, lambda: sum(run(one, config)["passed"] for one in programs))
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            seconds, passed = json.loads(pipe.read())
        os.waitpid(child, 0)
    return seconds, passed


def row(name: str, seconds: list[float], passed: int, programs: int) -> str:
    middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
    return f"| {name} | {passed} of {programs} | {middle:.2f} ({least:.2f} to {most:.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    programs = canonical_programs()
    print(f"| sandbox | passed | seconds, median of {repeats} |\n|---|---|---|")
    kinds: tuple[SandboxMode, ...] = ("landlock", "bwrap")
    for kind in kinds:
        box = Sandbox(kind)
        reason = box.unusable()
        if reason is None:
            found = timed(repeats, lambda box=box: sum(r.passed for r in box.run(programs)))
            print(row(f"{kind}, user {os.getuid()}", *found, len(programs)))
        else:
            print(f"| {kind} | {reason} | - |")
        box.close()
    if os.getuid() == 0:
        found = as_ordinary_user(repeats, programs)
        print(row(f"landlock, user {ORDINARY}", *found, len(programs)))


if __name__ == "__main__":
    main()

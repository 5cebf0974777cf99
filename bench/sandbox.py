"""How long the sandbox takes for HumanEval's 164 canonical programs.

    .venv/bin/python bench/sandbox.py [--repeats 5]

Landlock and bubblewrap, as the user who runs this and, for root, as an ordinary user too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mixloop.evals import SandboxMode
from mixloop.evals.benchmarks import load_items
from mixloop.evals.sandbox import Sandbox, restrictions, server
from mixloop.evals.sandbox.sandbox import MEMORY

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


def as_ordinary_user(repeats: int, programs: list[str], python: str) -> tuple[list[float], int]:
    """The fork server started by another user, with an interpreter and files it can reach."""
    requests = "".join(json.dumps({"program": program}) + "\n" for program in programs)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for module in (restrictions, server):
            shutil.copy(str(module.__file__), folder)
        private = Path(folder) / "private"
        private.mkdir()
        os.chown(private, ORDINARY, ORDINARY)
        config = {"timeout": 3.0, "memory": MEMORY, "locked": True, "landlock": True, "drop": True}
        config["tmp"] = str(private)
        command = [python, "-I", "-S", "-B", f"{folder}/server.py", json.dumps(config)]

        def once() -> int:
            done = subprocess.run(
                command,
                input=requests,
                capture_output=True,
                text=True,
                check=True,
                env={},
                cwd="/",
                user=ORDINARY,
                group=ORDINARY,
                extra_groups=[],
            )
            return sum(json.loads(line)["passed"] for line in done.stdout.splitlines())

        return timed(repeats, once)


def row(name: str, seconds: list[float], passed: int, programs: int) -> str:
    middle, least, most = statistics.median(seconds), min(seconds), max(seconds)
    return f"| {name} | {passed} of {programs} | {middle:.2f} ({least:.2f} to {most:.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--python", default="/usr/bin/python3", help="an ordinary user's")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    programs = canonical_programs()
    print(f"| sandbox | passed | seconds, median of {repeats} |\n|---|---|---|")
    kinds: tuple[SandboxMode, ...] = ("landlock", "bwrap")
    for kind in kinds:
        box = Sandbox(kind)
        reason = box.unusable()
        if reason is None:
            times = timed(repeats, lambda box=box: sum(r.passed for r in box.run(programs)))
            print(row(f"{kind}, user {os.getuid()}", *times, len(programs)))
        else:
            print(f"| {kind} | {reason} | - |")
        box.close()
    if os.getuid() == 0 and Path(arguments.python).exists():
        times = as_ordinary_user(repeats, programs, arguments.python)
        print(row(f"landlock, user {ORDINARY}, its start included", *times, len(programs)))


if __name__ == "__main__":
    main()

"""What mixloop costs when it does nothing: ``mixloop --help`` and an idle ``mixloop control``.

    .venv/bin/python bench/footprint.py [--seconds 60] [--repeats 9]

An idle controller is one beside a run that has not reached its first checkpoint, at the default
``controller.poll`` and with nothing left to send to MLflow.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml


def children_cpu() -> float:
    """CPU seconds of all children waited for so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def help_cpu(repeats: int) -> list[float]:
    """CPU seconds of ``mixloop --help``, each in a process of its own."""
    command = [str(Path(sys.executable).with_name("mixloop")), "--help"]
    spent = []
    for _ in range(repeats):
        before = children_cpu()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spent.append(children_cpu() - before)
    return spent


def idle_run(folder: Path) -> Path:
    """A run file over one small token store."""
    store = folder / "web"
    store.mkdir()
    (store / "tokens.bin").write_bytes(b"\0\0" * 10_000)
    header = {"schema": "mixloop/store/1", "tokens": 10_000, "documents": 1, "dtype": "uint16"}
    header |= {"vocab_size": 65_536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
    (store / "store.json").write_text(json.dumps(header))
    path = folder / "run.yaml"
    run = {"run": {"id": "idle", "dir": "run"}, "budget": "1B", "sources": {"web": {"path": "web"}}}
    path.write_text(yaml.safe_dump(run))
    return path


def idle_cost(seconds: float) -> tuple[float, float]:
    """Share of a core and resident MiB of an idle controller, children included."""
    with tempfile.TemporaryDirectory() as folder:
        path = idle_run(Path(folder))
        command = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            watched = psutil.Process(process.pid)
            time.sleep(30)  # the start is told to MLflow by a child that then ends
            before, began = sum(watched.cpu_times()), time.monotonic()
            time.sleep(seconds)
            share = (sum(watched.cpu_times()) - before) / (time.monotonic() - began)
            family = [watched, *watched.children(recursive=True)]
            memory = sum(member.memory_info().rss for member in family) / 2**20
            process.send_signal(signal.SIGTERM)
    return share, memory


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    spent = help_cpu(arguments.repeats)
    share, memory = idle_cost(arguments.seconds)
    print("| what | figure | bound |\n|---|---|---|")
    middle, least, most = statistics.median(spent), min(spent), max(spent)
    print(
        f"| `mixloop --help`, CPU seconds, median of {len(spent)} "
        f"| {middle:.3f} ({least:.3f} to {most:.3f}) | 0.35 |"
    )
    print(
        f"| idle `mixloop control`, share of a core over {arguments.seconds:.0f} s "
        f"| {share:.2%} | 1% |"
    )
    print(f"| idle `mixloop control`, resident memory | {memory:.0f} MiB | 150 MB |")


if __name__ == "__main__":
    main()

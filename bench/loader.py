"""Loaders side by side on the same token stores: tokens per second, copies included.

.venv/bin/python bench/loader.py --peers DIR --repeats 5

Four stores of 1,024-token windows with weights .60/.20/.15/.05, and 46 sources with weights down
to 5e-5; batches of 64 windows in one process. Every peer runs in a process of its own, in an
environment that is made under DIR the first time (their pins conflict with one another); one that
can't be installed is shown with the reason. Beside the rates: this machine's limits, the greatest
error of any source's count at any batch, and whether weights can be changed by a public call.
"""

from __future__ import annotations

import os

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_key] = "1"

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mixloop.contract import Order, write_order
from mixloop.trainer.loader import MixtureLoader

ROWS, LENGTH = 64, 1024
BY_HAND = "the same, batches gathered by hand"  # shown, and not taken for a peer as it is shipped
PEERS = {  # name: (environment, live change by a public call)
    "torch WeightedRandomSampler": ("torch", "no"),
    BY_HAND: ("torch", "no"),
    "torchdata weighted sampler": ("torch", "by a new node and the old state"),
    "HF interleave, map-style": ("torch", "no"),
    "HF interleave, iterable": ("torch", "no"),
    "Grain mix": ("grain", "no"),
    "LitData combined": ("torch", "no"),
    "MosaicML Streaming": ("mosaic", "no"),
}
ENVIRONMENTS = {
    "torch": [["torch>=2.9", "numpy", "datasets>=5", "torchdata"],
              ["--no-deps", "litdata", "lightning-utilities", "boto3", "botocore", "jmespath",
               "s3transfer", "obstore", "tifffile"]],
    "grain": [["grain"]],
    "mosaic": [["mosaicml-streaming"]],
}  # fmt: skip
SCRIPT = Path(__file__).with_name("loader_peers.py")


def weights_of(count: int) -> list[float]:
    if count == 4:
        return [0.60, 0.20, 0.15, 0.05]
    drawn = np.sort(np.random.default_rng(46).pareto(0.7, count - 1))[::-1] + 1e-3
    rest = drawn / drawn.sum() * (1 - 5e-5)
    return [*np.maximum(rest, 5e-5) / np.maximum(rest, 5e-5).sum() * (1 - 5e-5), 5e-5]


def make(folder: Path, count: int, rows: int) -> list[float]:
    """The same tokens for everybody: `.npy` tables, which token stores share by link."""
    weights = weights_of(count)
    (folder / "weights.json").write_text(json.dumps(weights))
    drawing = np.random.default_rng(0)
    for number in range(count):
        table = drawing.integers(0, 50_000, (rows, LENGTH)).astype("<u2")
        np.save(folder / f"tokens-{number}.npy", table)
        store = folder / f"store-{number}"
        store.mkdir()
        table.tofile(store / "tokens.bin")
        header = {"schema": "mixloop/store/1", "tokens": table.size, "documents": 1}
        header |= {"dtype": "uint16", "vocab_size": 50_000, "tokenizer": "t", "eos_id": 0}
        (store / "store.json").write_text(json.dumps(header | {"fingerprint": str(number)}))
    return weights


def ours(folder: Path, weights: list[float], batches: int, repeats: int, prefetch: int) -> Any:
    """Our own loader through its public face; also the greatest count error at any batch."""
    names = [f"s{n}" for n in range(len(weights))]
    with tempfile.TemporaryDirectory() as run:
        loader = MixtureLoader(
            run, run="bench", sources={n: str(folder / f"store-{i}") for i, n in enumerate(names)},
            weights=dict(zip(names, weights, strict=True)), budget=10**15, sequence_length=LENGTH,
            micro_batch=ROWS, prefetch=prefetch, dtype="native", status_every=1000,
        )  # fmt: skip
        stream = iter(loader)
        for _ in range(batches):
            next(stream)
        rates = []
        for _ in range(repeats):
            begun = time.perf_counter()
            for _ in range(batches):
                next(stream)
            rates.append(batches * ROWS * LENGTH / (time.perf_counter() - begun))
        shares = np.array([loader.weights[name] for name in names])
        drawn = np.array(list(loader.drawn().values()), float)
        worst = 0.0
        for _ in range(batches):
            batch = next(stream)
            drawn += np.bincount(batch["source"].numpy(), minlength=len(names))
            worst = max(worst, float(np.abs(drawn - drawn.sum() * shares).max()))
        loader.close()
    return {"rates": rates, "draws": int(drawn.sum()), "off": worst}


def news(folder: Path, repeats: int) -> tuple[float, list[int]]:
    """Seconds a step spends on news, amortised, and steps from a new order to its first batch."""
    names = [f"s{n}" for n in range(4)]
    with tempfile.TemporaryDirectory() as run:
        loader = MixtureLoader(
            run, run="bench", sources={n: str(folder / f"store-{i}") for i, n in enumerate(names)},
            weights=dict(zip(names, weights_of(4), strict=True)), budget=10**15,
            sequence_length=LENGTH, micro_batch=ROWS, status_every=1000,
        )  # fmt: skip
        next(loader)
        incarnation = loader._incarnation
        assert incarnation is not None
        spent = []
        for _ in range(repeats):
            begun = time.perf_counter()
            for _ in range(200):
                incarnation.live.poll()
            spent.append((time.perf_counter() - begun) / 200 / loader.job.settings.poll_every)
            time.sleep(0.2)
        took = []
        for number in range(1, repeats + 1):
            share = 0.3 + 0.4 * (number % 2)
            weights = dict(zip(names, (share, 1 - share, 0.0, 0.0), strict=True))
            write_order(Path(run) / "mixture.json", Order("bench", 1, number, weights))
            asked, before = loader.step, loader.weights
            while loader.weights == before:
                next(loader)
                time.sleep(0.005)  # a step of training
            took.append(loader.step - asked)
        loader.close()
    return statistics.median(spent), took


def limits(folder: Path, repeats: int) -> tuple[float, float]:
    """Tokens per second of a plain copy and of a random gather into memory used again."""
    table = np.ascontiguousarray(np.load(folder / "tokens-0.npy"))
    out = np.empty((ROWS, LENGTH), table.dtype)
    places = [np.random.default_rng(n).integers(0, len(table), ROWS) for n in range(400)]
    copies, gathers = [], []
    for _ in range(max(repeats, 5)):
        begun = time.perf_counter()
        for n in range(400):
            np.copyto(out, table[n * ROWS % (len(table) - ROWS) :][:ROWS])
        copies.append(400 * ROWS * LENGTH / (time.perf_counter() - begun))
        begun = time.perf_counter()
        for place in places:
            table.take(place, axis=0, out=out, mode="clip")
        gathers.append(400 * ROWS * LENGTH / (time.perf_counter() - begun))
    return statistics.median(copies), statistics.median(gathers)


def environment(folder: Path, name: str) -> Path:
    """The Python of a peer's environment, made if it isn't there.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    python = folder / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        for wanted in ENVIRONMENTS[name]:
            command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return python


def peer(name: str, environments: Path, folder: Path, batches: int, repeats: int) -> Any:
    try:
        python = environment(environments, PEERS[name][0])
    except subprocess.CalledProcessError as error:
        return {"failed": f"not installed: {(error.stderr or '').strip().splitlines()[-1:]}"}
    command = [str(python), str(SCRIPT), name, str(folder), str(batches), str(repeats)]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:100]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(title: str, rows: dict[str, Any], gather: float) -> None:
    good = {n: statistics.median(r["rates"]) for n, r in rows.items() if "rates" in r}
    shipped = [rate for name, rate in good.items() if name in PEERS and name != BY_HAND]
    fastest = max(shipped, default=float("nan"))
    print(f"\n| {title} | tokens/s, millions (worst, best) | to the fastest peer | of the gather "
          "| greatest count error | live change |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        if "failed" in row:
            print(f"| {name} | {row['failed']} | | | | |")
            continue
        rates = [rate / 1e6 for rate in row["rates"]]
        off = f"{row['off']:.2f} in {row['draws']:,}" if row["draws"] else "not told"
        live = PEERS[name][1] if name in PEERS else "yes"
        print(
            f"| {name} | {good[name] / 1e6:,.0f} ({min(rates):,.0f}, {max(rates):,.0f}) "
            f"| {good[name] / fastest:.2f} | {good[name] / gather:.2f} | {off} | {live} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="where the peers' environments are or go")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=24_000, help="windows of a store")
    given = parser.parse_args()
    for count in (4, 46):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            weights = make(folder, count, given.rows if count == 4 else given.rows // 8)
            copy, gather = limits(folder, given.repeats)
            print(f"\nthis machine: copy {copy / 1e6:,.0f}, gather {gather / 1e6:,.0f} M tokens/s")
            rows = {
                f"mixloop, prefetch {n}": ours(folder, weights, given.batches, given.repeats, n)
                for n in (0, 8)
            }
            if given.peers is not None:
                for name in PEERS:
                    rows[name] = peer(name, given.peers, folder, given.batches, given.repeats)
            again = ours(folder, weights, given.batches, given.repeats, 0)
            rows["mixloop, prefetch 0, again"] = again
            show(f"{count} sources", rows, gather)
            if count == 4:
                spent, took = news(folder, given.repeats)
                print(
                    f"\nlooking for news: {spent * 1e6:.2f} us a step, amortised; from a new "
                    f"mixture.json to its first batch: {took} steps (polls every 20)"
                )


if __name__ == "__main__":
    main()

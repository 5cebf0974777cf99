"""`bench/gpu.py`, feed: what a training loop on a device loses to where its batches come from."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loader import make
from transformers import LlamaConfig, LlamaForCausalLM

from mixloop.trainer.loader import MixtureLoader

LENGTH, ROWS = 1024, 16  # the stores of bench/loader.py have windows of 1,024
VOCABULARY = 50_304
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 12}  # fmt: skip
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 1}  # fmt: skip
SECONDS, BLOCK, WARM = 40.0, 12, 6


class Loop:
    """Somebody's training loop: a Llama in bf16, AdamW, nothing compiled."""

    def __init__(self, device: str, quick: bool) -> None:
        torch.manual_seed(0)
        self.vocabulary = 64 if quick else VOCABULARY
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=LENGTH, tie_word_embeddings=True, use_cache=False,
            **(SMALL if quick else SHAPE),
        )  # fmt: skip
        kind = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = LlamaForCausalLM(config).to(device, kind).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.device = device
        self.parameters = sum(one.numel() for one in self.model.parameters())
        # any batch that is another one, cut short or overwritten in flight gives another sum
        odd = torch.randint(2**40, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
        self.odd = (2 * odd + 1).to(device)

    def step(self, rows: torch.Tensor, wait: bool) -> torch.Tensor:
        """One step; the checksum of the ids [rows, L] as they arrived, on the device."""
        ids = rows.to(self.device, non_blocking=True)
        if ids.dtype != torch.int64:
            ids = ids.long()
        check = (ids * self.odd[: len(ids)]).sum()
        if self.vocabulary < VOCABULARY:
            ids = ids % self.vocabulary
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if wait:
            loss.item()
        return check

    def settle(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()


class Fed:
    """One way to feed the loop, and what was measured of it."""

    def __init__(self, name: str, sources: int, loader: MixtureLoader | None, rows: Any) -> None:
        self.name, self.sources = name, sources
        self.loader, self.rows = loader, rows
        self.sums: list[torch.Tensor] = []
        self.ms: dict[bool, list[float]] = {False: [], True: []}
        self.draw: list[float] = []

    def next(self) -> torch.Tensor:
        """The next batch's ids [rows, L], on the host but for the one that is always the same."""
        if self.loader is None:
            return self.rows
        return next(self.loader)["input_ids"]

    def block(self, loop: Loop, steps: int, wait: bool, timed: bool = True) -> None:
        """So many steps in a row, timed together."""
        drawing = 0.0
        loop.settle()
        began = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            rows = self.next()
            drawing += time.perf_counter() - asked
            self.sums.append(loop.step(rows, wait))
        loop.settle()
        if timed:
            self.ms[wait].append(1e3 * (time.perf_counter() - began) / steps)
            self.draw.append(1e3 * drawing / steps)


def open_loader(
    run: Path, stores: Path, weights: list[float], prefetch: int, pin: bool, dtype: Any
) -> MixtureLoader:
    names = [f"s{number}" for number in range(len(weights))]
    return MixtureLoader(
        run, run="bench", sources={n: str(stores / f"store-{i}") for i, n in enumerate(names)},
        weights=dict(zip(names, weights, strict=True)), budget=10**13, sequence_length=LENGTH,
        micro_batch=ROWS, prefetch=prefetch, pin_memory=pin, dtype=dtype, seed=7,
    )  # fmt: skip


def ways(scratch: Path, options: argparse.Namespace) -> list[Fed]:
    """The constant batch, and every combination of the loader's options."""
    cuda = options.device == "cuda"
    fixed = torch.randint(50_000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    found = [Fed("one batch, on the device", 0, None, fixed.to(options.device))]
    for count in (4, 46):
        stores = scratch / f"stores-{count}"
        stores.mkdir(parents=True)
        weights = make(stores, count, (400 if options.quick else 8000) // (1 if count == 4 else 8))
        kinds = [
            (prefetch, pin, "int64") for prefetch in (0, 8) for pin in (False, True)[: 1 + cuda]
        ]
        for prefetch, pin, dtype in [*kinds, (8, cuda, "native")]:
            name = f"{count} sources, prefetch {prefetch}"
            name += ", pinned" if pin else ""
            name += ", native" if dtype == "native" else ""
            run = scratch / f"run-{len(found)}"
            loader = open_loader(run, stores, weights, prefetch, pin, dtype)
            found.append(Fed(name, count, loader, None))
    return found


def same_order(fed: list[Fed]) -> int:
    """Batches compared. AssertionError: two ways saw different ones."""
    compared = 0
    for count in (4, 46):
        own = [one for one in fed if one.sources == count]
        sums = [torch.stack(one.sums).cpu() for one in own]
        assert len(sums[0].unique()) == len(sums[0]), f"{count} sources: a batch came twice"
        for one, found in zip(own[1:], sums[1:], strict=True):
            wrong = (found != sums[0]).nonzero().flatten().tolist()
            assert not wrong, f"{one.name}: batches {wrong[:5]} are not those of {own[0].name}"
            compared += len(found)
    return compared


def figures(one: Fed, ceiling: Fed) -> dict[str, Any]:
    middle = {wait: statistics.median(values) for wait, values in one.ms.items()}
    best = {wait: statistics.median(values) for wait, values in ceiling.ms.items()}
    return {
        "name": one.name,
        "ms": middle[False],
        "ms_range": [min(one.ms[False]), max(one.ms[False])],
        "lost": 1 - best[False] / middle[False],
        "ms_waiting": middle[True],
        "ms_waiting_range": [min(one.ms[True]), max(one.ms[True])],
        "lost_waiting": 1 - best[True] / middle[True],
        "draw_ms": statistics.median(one.draw),
    }


def measure(loop: Loop, fed: list[Fed], quick: bool) -> dict[str, Any]:
    """Rounds of all ways, each time another one first."""
    block, warm = (2, 1) if quick else (BLOCK, WARM)
    for one in fed:
        one.block(loop, warm, wait=False, timed=False)
    began = time.monotonic()
    rounds = 0
    while rounds < 2 or (time.monotonic() - began < SECONDS and not quick):
        for one in fed[rounds % len(fed) :] + fed[: rounds % len(fed)]:
            for wait in (False, True):
                one.block(loop, block, wait)
        rounds += 1
    memory = torch.cuda.max_memory_allocated() / 1e9 if loop.device == "cuda" else None
    return {
        "parameters": loop.parameters,
        "rows": ROWS,
        "length": LENGTH,
        "rounds": rounds,
        "steps_a_round": block,
        "gpu_memory_gb": memory,
    }


def run(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The part's steps."""
    loop = Loop(options.device, options.quick)
    fed = ways(options.scratch / "feed", options)

    def compared() -> int:
        for one in fed:
            if one.loader is not None:
                one.loader.close()
        return same_order(fed)

    return {
        "measured": lambda: measure(loop, fed, options.quick),
        "variants": lambda: [figures(one, fed[0]) for one in fed],
        "batches_compared": compared,
    }

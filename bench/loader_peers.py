"""One loader of the comparison in a process of its own; ``bench/loader.py`` starts it.

python loader_peers.py NAME FOLDER BATCHES REPEATS, in an environment that has the peer. FOLDER
holds `tokens-N.npy` (rows of 1,024 uint16) and `weights.json`. Prints one JSON line: tokens per
second of each repeat, copies into a batch included, and the draws per source where it tells them.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH = 64, 1024


class Rows:
    """A map-style dataset: rows of a memory-mapped table, each with the number of its source."""

    def __init__(self, file: Path, number: int) -> None:
        self.table = np.load(file, mmap_mode="r")
        self.number = number

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Any:
        return np.array(self.table[index]), self.number


def sources(folder: Path) -> tuple[list[Rows], list[float]]:
    weights = json.loads((folder / "weights.json").read_text())
    return [Rows(folder / f"tokens-{n}.npy", n) for n in range(len(weights))], weights


def collate(items: list[Any]) -> tuple[Any, list[int]]:
    return np.stack([row for row, _ in items]), [number for _, number in items]


def torch_sampler(folder: Path, by_hand: bool) -> Iterator[Any]:
    """WeightedRandomSampler over the concatenation, in a DataLoader.

    ``by_hand``: with a dataset that somebody has taught to gather a whole batch at once, source by
    source, which no part of torch does.
    """
    import torch
    from torch.utils.data import (
        BatchSampler,
        ConcatDataset,
        DataLoader,
        Dataset,
        WeightedRandomSampler,
    )

    tables, weights = sources(folder)

    class Whole(Dataset):  # type: ignore[type-arg]
        """Indexed by lists: as fast as this way gets."""

        def __init__(self) -> None:
            self.ends = np.cumsum([len(t) for t in tables])

        def __len__(self) -> int:
            return int(self.ends[-1])

        def __getitems__(self, indices: list[int]) -> Any:
            at = np.array(indices)
            number = np.searchsorted(self.ends, at, "right")
            rows = np.empty((len(at), LENGTH), np.uint16)
            for one in np.unique(number):
                here = number == one
                begin = self.ends[one] - len(tables[one])
                rows[here] = tables[one].table[at[here] - begin]
            return torch.from_numpy(rows), number

    per_row = torch.cat(
        [torch.full((len(t),), w / len(t)) for t, w in zip(tables, weights, strict=True)]
    )
    sampler = WeightedRandomSampler(per_row, 10**6, replacement=True)
    while not by_hand:
        plain: Any = ConcatDataset(tables)  # type: ignore[arg-type]
        loader = DataLoader(plain, ROWS, sampler=sampler, drop_last=True)
        yield from ((rows, number.tolist()) for rows, number in loader)
    while True:
        yield from DataLoader(
            Whole(),
            batch_sampler=BatchSampler(sampler, ROWS, False),
            collate_fn=lambda found: (found[0], found[1].tolist()),
        )


def torchdata(folder: Path) -> Iterator[Any]:
    from torch.utils.data import RandomSampler
    from torchdata.nodes import Batcher, Mapper, MapStyleWrapper, MultiNodeWeightedSampler

    tables, weights = sources(folder)
    nodes = {str(n): MapStyleWrapper(table, RandomSampler(table)) for n, table in enumerate(tables)}
    shares = {str(n): w for n, w in enumerate(weights)}
    mixed = MultiNodeWeightedSampler(
        nodes, shares, stop_criteria="CYCLE_UNTIL_ALL_DATASETS_EXHAUSTED"
    )
    node = Mapper(Batcher(mixed, ROWS), collate)
    while True:
        node.reset()
        yield from node


def hf(folder: Path, streaming: bool) -> Iterator[Any]:
    from datasets import Array2D, Dataset, Features, Sequence, Value, interleave_datasets  # noqa: F401

    tables, weights = sources(folder)
    features = Features({"ids": Sequence(Value("uint16"), LENGTH), "number": Value("int64")})
    made = []
    for table in tables:
        ids = np.array(table.table[:2000])
        one = Dataset.from_dict(
            {"ids": list(ids), "number": [table.number] * len(ids)}, features=features
        )
        made.append(one.with_format("numpy"))
    if streaming:
        mixed = interleave_datasets(
            [one.to_iterable_dataset() for one in made], weights, seed=0,
            stopping_strategy="all_exhausted",
        )  # fmt: skip
        while True:
            for batch in mixed.with_format("numpy").iter(ROWS, drop_last_batch=True):
                yield batch["ids"], batch["number"].tolist()
    mixed = interleave_datasets(made, weights, seed=0, stopping_strategy="all_exhausted")
    while True:
        for batch in mixed.iter(ROWS, drop_last_batch=True):
            yield batch["ids"], batch["number"].tolist()


def grain(folder: Path) -> Iterator[Any]:
    import grain.python as pygrain

    tables, weights = sources(folder)
    parts = [pygrain.MapDataset.source(table).shuffle(seed=0).repeat() for table in tables]
    mixed = pygrain.MapDataset.mix(parts, weights)
    options = pygrain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    yield from mixed.batch(ROWS, batch_fn=collate).to_iter_dataset(options)


def litdata(folder: Path) -> Iterator[Any]:
    import torch
    from litdata import CombinedStreamingDataset, StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    tables, weights = sources(folder)
    made = []
    for table in tables:
        out = Path(tempfile.mkdtemp()) / f"s{table.number}"
        out.mkdir()
        writer = BinaryWriter(str(out), chunk_bytes=2**26, item_loader=TokensLoader(LENGTH))
        for n in range(2000):
            writer.add_item(n, torch.from_numpy(np.array(table.table[n]).astype(np.int64)))
        writer.done()
        writer.merge(1)
        made.append(StreamingDataset(str(out), item_loader=TokensLoader(LENGTH), shuffle=True))
    mixed = CombinedStreamingDataset(made, seed=0, weights=weights, iterate_over_all=False)
    while True:
        held: list[Any] = []
        for item in mixed:
            held.append(item)
            if len(held) == ROWS:
                yield torch.stack(held), None
                held = []


def mosaic(folder: Path) -> Iterator[Any]:
    from streaming import MDSWriter, Stream, StreamingDataset

    tables, weights = sources(folder)
    streams = []
    for table, weight in zip(tables, weights, strict=True):
        out = tempfile.mkdtemp()
        with MDSWriter(out=out, columns={"ids": f"ndarray:uint16:{LENGTH}", "n": "int"}) as writer:
            for n in range(2000):
                writer.write({"ids": np.array(table.table[n]), "n": table.number})
        streams.append(Stream(local=out, proportion=weight))
    data = StreamingDataset(
        streams=streams, shuffle=True, batch_size=ROWS, epoch_size=10**6, allow_unsafe_types=True
    )
    while True:
        held: list[Any] = []
        for item in data:
            held.append((item["ids"], item["n"]))
            if len(held) == ROWS:
                yield collate(held)
                held = []


PEERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "torch WeightedRandomSampler": lambda folder: torch_sampler(folder, False),
    "the same, batches gathered by hand": lambda folder: torch_sampler(folder, True),
    "torchdata weighted sampler": torchdata,
    "HF interleave, map-style": lambda folder: hf(folder, False),
    "HF interleave, iterable": lambda folder: hf(folder, True),
    "Grain mix": grain,
    "LitData combined": litdata,
    "MosaicML Streaming": mosaic,
}


def main() -> None:
    name, folder, batches, repeats = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:5])
    random.seed(0)
    weights = json.loads((folder / "weights.json").read_text())
    stream = PEERS[name](folder)
    begun = time.perf_counter()
    next(stream)
    for _ in range(batches):  # to warm up, and to know how many fit a repeat
        next(stream)
        if time.perf_counter() - begun > 10:
            break
    rates, drawn, worst = [], np.zeros(len(weights)), 0.0
    for _ in range(repeats):
        done, begun, seen = 0, time.perf_counter(), []
        while done < batches and time.perf_counter() - begun < 8:
            _, numbers = next(stream)
            seen.append(numbers)
            done += 1
        rates.append(done * ROWS * LENGTH / (time.perf_counter() - begun))
        for numbers in seen:
            if numbers is None:
                continue
            drawn += np.bincount(np.asarray(numbers), minlength=len(weights))
            off = np.abs(drawn - drawn.sum() * np.array(weights)).max()
            worst = max(worst, float(off))
    print(json.dumps({"rates": rates, "draws": int(drawn.sum()), "off": worst}))


if __name__ == "__main__":
    main()

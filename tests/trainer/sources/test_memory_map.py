"""Files are mapped late, a bounded number at once, without a descriptor each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixloop.trainer.config import Job
from mixloop.trainer.sources import (
    StoreInfo,
    open_stores,
)
from mixloop.trainer.sources.memory_map import MappedFile, Pool

EOS = 0


def tokens(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 1000, count).astype(np.uint16)


def test_the_pool_keeps_what_is_used_and_frees_what_is_gone(tmp_path: Path) -> None:
    pool = Pool(3)
    files = []
    for number in range(6):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * 100)
        files.append(MappedFile(path, 100, pool))
    kept = files[0].bytes()
    for file in files[1:]:
        files[0].bytes()  # used again and again: it stays
        assert file.bytes()[99] == int(file.path.name)
        assert len(pool) <= 3
        assert files[0].content is kept  # mapped once
    for file in files[1:] + files[1:]:
        file.bytes()
    assert not files[0].mapped
    assert kept.sum() == 0  # an array outlives its file's place in the pool
    del files, file
    assert len(pool) == 0
    (tmp_path / "1").write_bytes(b"")
    with pytest.raises(OSError, match="0 bytes now, 100 when it was opened"):
        MappedFile(tmp_path / "1", 100, pool).bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_files_beyond_the_address_space_take_turns(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from mixloop.trainer.sources.memory_map import MappedFile, Pool
files = []
for number in range(8):
    path = Path(sys.argv[1]) / str(number)
    with path.open("wb") as stream:
        stream.write(bytes([number]))
        stream.truncate(2**30)
    files.append(MappedFile(path, 2**30, Pool(100) if not files else files[0].pool))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 7 * 2**29, resource.RLIM_INFINITY))
print([int(file.bytes()[0]) for file in files * 2], len(files[0].pool))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("]")[0] == str([*range(8), *range(8)])[:-1]
    assert int(done.stdout.split("]")[1]) <= 3


def test_a_thousand_sources_open_no_file(tmp_path: Path) -> None:
    data = tokens(64).tobytes()
    info = StoreInfo(64, 1, "uint16", 1000, "t", "f", EOS)
    for number in range(1000):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        (folder / "tokens.bin").write_bytes(data)
        (folder / "store.json").write_text(json.dumps(info.to_json()))
    sources = {f"s{n}": {"path": tmp_path / f"s{n}"} for n in range(1000)}
    job = Job.model_validate(
        {"run": "r", "dir": tmp_path, "budget": 100, "sources": sources,
         "settings": {"sequence_length": 8}}
    )  # fmt: skip
    stores = open_stores(job)
    assert sum(store.stream.mapped for store in stores.values()) == 0
    before = sum(1 for _ in Path("/dev/fd").iterdir())
    found = [store.gather(np.array([7]), 8) for store in stores.values()]
    assert (np.concatenate(found) == tokens(64)[56:]).all()
    assert sum(store.stream.mapped for store in stores.values()) == 1000
    assert sum(1 for _ in Path("/dev/fd").iterdir()) <= before + 8  # of others; a map needs none

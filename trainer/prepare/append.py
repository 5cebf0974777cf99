"""A token store that grows: further shards, and a header that remembers what the store was.

A reader sees the store before or after: shards are whole on the disk, under names that no header
has, before the header that names them takes the old one's place. What a crash leaves behind in
between is overwritten by the next try.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mixloop.common.files import fsync_folder, write_atomic
from mixloop.trainer.sources import HEADER, Shard, StoreInfo, fingerprint, shards_fingerprint


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Nobody else appends within the block (on file systems that have locks).

    Raises:
        ValueError: somebody does already, or there is no such folder.
    """
    try:
        handle = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"{store}: no token store there to append to") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{store}: another `mixloop prepare` appends to it now") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def grow(
    store: Path, before: StoreInfo, work: Path, files: Sequence[Shard], documents: int
) -> StoreInfo:
    """Add finished shards, which lie in `work` on the same file system, to a store.

    Args:
        before: the store's header as it is.
        documents: that end in the new shards.

    Returns:
        The header as it is now.

    Raises:
        ValueError: the store's only file so far isn't what its header says.
    """
    shards = (*(before.shards or (_only_file(store, before),)), *files)
    for file in files:
        (work / file.file).rename(store / file.file)
    fsync_folder(store)
    info = replace(
        before,
        tokens=sum(shard.tokens for shard in shards),
        documents=before.documents + documents,
        fingerprint=shards_fingerprint(before.tokenizer, before.dtype, shards),
        history=(*before.history, {"tokens": before.tokens, "fingerprint": before.fingerprint}),
        shards=shards,
    )
    write_atomic(store / HEADER, json.dumps(info.to_json(), indent=2).encode())
    return info


def _only_file(store: Path, info: StoreInfo) -> Shard:
    """The file of a store without shards as the first of some."""
    data = store / "tokens.bin"
    try:
        with data.open("rb") as whole:
            mine = hashlib.file_digest(whole, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{data}: {error.strerror or error}") from error
    if fingerprint(info.tokenizer, info.dtype, mine) != info.fingerprint:
        raise ValueError(f"{data}: its SHA-256 is not the header's; prepare the store again")
    return Shard(data.name, info.tokens, mine)

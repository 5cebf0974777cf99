"""A trainer's state in torch's distributed checkpoint format (DCP): every rank writes its part.

A folder `trainer_state/` holds `model.<name>` and `optimizer.<name>.{step,exp_avg,exp_avg_sq}`, by
the parameters' names. It is read back at any number of ranks, sharded or not, and each rank reads
what it needs. The ranks must share the file system.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mixloop.common.files import open_regular
from mixloop.contract import FileEntry
from mixloop.trainer.config import JobError
from mixloop.trainer.run import Collectives, checkpoint_store

from .distributed import tensors, whole

if TYPE_CHECKING:
    import torch


FOLDER = "trainer_state"
"""The name within a checkpoint."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Pieces:
    """A written state, not yet in its place, and the sizes and hashes of its files."""

    folder: Path
    files: Mapping[str, FileEntry]


def moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """AdamW's state by parameter name, made as AdamW makes it where there was no step yet."""
    import torch

    names = {id(value): named[0] for named, value in tensors(model)}
    moments_by_name = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(parameter).detach()
            moments_by_name[names[id(parameter)]] = {key: state[key] for key in ("step", *MOMENTS)}
    return moments_by_name


def _state(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights = {named[0]: value.detach() for named, value in tensors(model)}
    return {"model": weights, "optimizer": moments(model, optimizer)}


@contextmanager
def _without_asking(peers: Collectives) -> Iterator[bool]:
    """Whether this rank is alone, which torch then need not warn of."""
    with warnings.catch_warnings():
        if peers.world == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable")
        yield peers.world == 1


def write_pieces(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, peers: Collectives
) -> Pieces:
    """Write the state into a folder that is not there yet. Collective.

    Raises:
        OSError: on every rank, when the disk did not take one rank's part.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _without_asking(peers) as alone:
            save(_state(model, optimizer), storage_writer=FileSystemWriter(folder), no_dist=alone)
    except CheckpointException as error:  # no Exception: it would pass through every handler
        raise OSError(_first(error)) from error
    # each rank hashes what it wrote; the metadata is rank 0's
    parts = sorted(folder.glob(f"__{peers.rank}_*"))
    if peers.rank == 0:
        parts.append(folder / ".metadata")
    hashed: dict[str, FileEntry] | str
    try:
        hashed = {f"{FOLDER}/{path.name}": checkpoint_store.entry(path) for path in parts}
    except OSError as error:
        hashed = str(error)
    files: dict[str, FileEntry] = {}
    for part in peers.collect(hashed):
        if isinstance(part, str):
            raise OSError(part)
        files |= part
    return Pieces(folder, files)


def place(pieces: Pieces, target: Path) -> None:
    """Move a written state into its checkpoint; both lie in one folder."""
    pieces.folder.rename(target / FOLDER)


def read_pieces(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, peers: Collectives
) -> None:
    """Take weights and optimizer state from a checkpoint, at whatever ranks. Collective.

    Raises:
        JobError: the checkpoint is of another model, or damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with _without_asking(peers) as alone:
            load(
                _state(model, optimizer),
                storage_reader=_reader(folder / FOLDER),
                no_dist=alone,
            )
    except (CheckpointException, RuntimeError, ValueError, KeyError, OSError) as error:
        raise JobError(f"{folder}: not a checkpoint of this model: {_first(error)}") from error
    except pickle.UnpicklingError as error:
        raise JobError(f"{folder}: {error}") from error


def _first(error: BaseException) -> str:
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_first(cause)}"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


_HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float64", "float16", "bfloat16", "int64", "int32", "bool"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "collections": {"OrderedDict"},
}
"""What DCP's metadata of plain tensors consists of. Entries that are pickles are not among it."""


class _Unpickler(pickle.Unpickler):
    """Reads DCP's metadata, which is a pickle, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"metadata that names {module}.{name} is not read")
        return super().find_class(module, name)


def read_metadata(file: IO[bytes]) -> Any:
    """DCP's metadata.

    Raises:
        pickle.UnpicklingError: it holds something else than descriptions of tensors.
    """
    return _Unpickler(file).load()


def _reader(folder: Path) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *arguments: Any, **options: Any) -> Any:
            with os.fdopen(open_regular(folder / ".metadata"), "rb") as file:
                metadata = read_metadata(file)
            if getattr(metadata, "storage_meta", None) is None:
                metadata.storage_meta = StorageMeta()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    return Reader(folder)


def gather_weights(model: Any, keep: bool) -> dict[str, torch.Tensor] | None:
    """A sharded model's weights in full, in CPU memory, where `keep`. Collective.

    One tensor after the other, so that no rank holds more than one of them beside its part.
    """
    weights: dict[str, torch.Tensor] = {}
    for names, value in tensors(model):
        full = whole(value.detach())
        if keep:
            weights |= dict.fromkeys(names, full.cpu())
    return weights if keep else None


def spread_weights(model: Any, file: Path) -> None:
    """Take a sharded model's weights from a safetensors file; every rank reads it.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        there = set(stored.keys())
        for names, value in tensors(model):
            name = next((name for name in names if name in there), None)
            if name is None:
                raise ValueError(f"{names[0]} is missing")
            value.detach().copy_(spread(stored.get_tensor(name), value, name))


def spread(full: torch.Tensor, like: torch.Tensor, name: str) -> torch.Tensor:
    """This rank's part of a tensor that every rank has in full, sharded as `like` is.

    Raises:
        ValueError: it is of another shape.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    if full.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(full.shape)}, the model {tuple(like.shape)}")
    if not isinstance(like, DTensor):
        return full
    # all have it: nothing is sent (src_data_rank)
    return distribute_tensor(
        full.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def spread_moments(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An unsharded optimizer's `state_dict` as one that this optimizer can load."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    spreaded = {
        number: {
            key: spread(value, parameters[number], key) if key in MOMENTS else value
            for key, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": spreaded}

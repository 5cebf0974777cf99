"""What training on a source adds to a checkpoint, kept in half precision.

A delta (task vector, 2212.04089) is ``expert - checkpoint``, one safetensors file under the
checkpoint's own names without wrappers' parts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from .checkpoint_folder import CheckpointError
from .weight_sums import OpenWeights, common_names, open_weights

DeltaDtype = Literal["bfloat16", "float16", "float32"]

_STORED = {
    "bfloat16": (torch.bfloat16, "BF16", 2),
    "float16": (torch.float16, "F16", 2),
    "float32": (torch.float32, "F32", 4),
}


def write_delta(checkpoint: Path, expert: Path, out: Path, dtype: DeltaDtype = "bfloat16") -> None:
    """Writes ``expert - checkpoint``, tensor by tensor, subtracted in float32 and rounded once.

    bfloat16 is the choice: a step at a pretraining run's learning rate lies below float16's least
    normal number (6e-5), while bfloat16's relative error is at most 2^-9 whatever a number's size.

    Args:
        checkpoint: The folder that the expert started from.
        expert: The folder of what it became.
        out: The file; a reader sees all of it or nothing.
        dtype: What a number of it takes.

    Raises:
        CheckpointError: one of them can't be read, or they aren't weights of one model.
        OSError: the disk did not take the file.
    """
    try:
        with open_weights(checkpoint, expert) as (before, after):
            names = common_names(before, after)
            scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
            try:
                _write(scratch, before, after, names, dtype)
                scratch.replace(out)
            finally:
                scratch.unlink(missing_ok=True)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(f"{expert}: no delta: {error}") from error


def same_weights(checkpoint: Path, other: Path) -> bool:
    """Whether two folders hold the same numbers, up to the rounding of the coarser of their dtypes.

    Reads no further than the first tensor that differs.

    Raises:
        OSError: one of them can't be read.
        ValueError: they aren't weights of one model.
    """
    with open_weights(checkpoint, other) as (before, after):
        names = common_names(before, after)
        return all(_equal(before.read(name), after.read(name)) for name in names)


def _equal(first: torch.Tensor, other: torch.Tensor) -> bool:
    coarser = min(first.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(first.to(coarser), other.to(coarser))


def _write(
    path: Path, before: OpenWeights, after: OpenWeights, names: list[str], dtype: DeltaDtype
) -> None:
    """The file of safetensors, whose own writer wants all tensors at once in memory.

    Eight bytes with the length of the header, the header, the numbers (the format's description).
    """
    torch_dtype, label, size = _STORED[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        shape = before.floating[name]
        begin, end = end, end + size * int(torch.Size(shape).numel())
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in _differences(before, after, names):
            # numpy has no bfloat16: the same bytes as whole numbers
            stored = tensor.to(torch_dtype).contiguous().flatten()
            file.write(stored.view(torch.uint8).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _differences(
    before: OpenWeights, after: OpenWeights, names: list[str]
) -> Iterator[torch.Tensor]:
    for name in names:
        difference = after.read(name).float() - before.read(name).float()
        if not torch.isfinite(difference).all():
            raise ValueError(f"{name} is not finite")
        yield difference

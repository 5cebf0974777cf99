"""A micro-batch as a training loop takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mixloop.trainer.config import Job, JobError
from mixloop.trainer.sources import Store

from .document_mask import document_ids, position_ids

if TYPE_CHECKING:
    import torch


def document_end(job: Job, stores: Mapping[str, Store]) -> int | None:
    """The token that attention of the reference trainer stops at; None: it doesn't.

    Raises:
        JobError: as for `end_of_text`.
    """
    return end_of_text(stores, "settings.document_mask") if job.settings.document_mask else None


def end_of_text(stores: Mapping[str, Store], key: str = "documents") -> int:
    """The token that ends a document, in every source.

    Args:
        key: of what asks for it, in messages.

    Raises:
        JobError: a source names none, or two name different ones.
    """
    ends = {name: store.info.eos_id for name, store in stores.items()}
    first, eos = next(iter(ends.items()))
    for name, other in ends.items():
        if other < 0 and stores[name].info.format == "store":
            raise JobError(
                f"{key}: sources.{name} was prepared without EOS, so that nothing ends its "
                "documents; leave it out, or prepare it again with --eos"
            )
        if other < 0:
            raise JobError(
                f"{key}: sources.{name} is of a format that doesn't say what ends a document; "
                f"give sources.{name}.eos_id"
            )
        if other != eos:
            raise JobError(
                f"{key}: sources.{name} ends documents with {other}, sources.{first} with "
                f"{eos}; leave it out, or prepare both with one tokenizer"
            )
    return eos


def native(stores: Mapping[str, Store]) -> npt.DTypeLike:
    """The smallest type that holds the ids of every source: of int16 and uint16 that is int32."""
    return np.result_type(*(store.stream.dtype for store in stores.values()))


def tensors(
    ids: npt.NDArray[Any],
    source: npt.NDArray[np.int64],
    eos: int | None,
    rows: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Ids [rows, L] and the index of each row's source [rows] as tensors, without copying.

    With `eos` also `document_ids` and `position_ids` [rows, L], int32. `rows` is the tensor whose
    memory `ids` is, if there is one: torch must see that, to know what copies are under way.
    """
    import torch

    if rows is None:
        rows = torch.from_numpy(ids)
    batch = {"input_ids": rows, "labels": rows, "source": torch.from_numpy(source)}
    if eos is not None:
        batch["document_ids"] = torch.from_numpy(document_ids(ids, eos))
        batch["position_ids"] = torch.from_numpy(position_ids(ids, eos))
    return batch

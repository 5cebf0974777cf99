"""Where documents lie inside windows, from the token ids alone.

A window is cut from a stream of documents, each ended by the end-of-text token. Attention that must
not cross documents needs each token's document, and its place within the document. Arrays of numpy
and tensors of torch are taken alike, on their own device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


Int32s = npt.NDArray[np.int32]


@overload
def document_ids(ids: npt.NDArray[Any], eos_id: int) -> Int32s: ...
@overload
def document_ids(ids: torch.Tensor, eos_id: int) -> torch.Tensor: ...
def document_ids(ids: Any, eos_id: int) -> Any:
    """Number of each token's document within its window, from 0.

    Args:
        ids: token ids, shape [..., L].
        eos_id: ends a document, and belongs to it.

    Returns:
        int32, shape [..., L]; it never decreases along a window.
    """
    ends = ids == eos_id
    if isinstance(ids, np.ndarray):
        numbers: Int32s = np.cumsum(ends, axis=-1, dtype=np.int32)
        numbers -= ends
        return numbers
    import torch

    return ends.cumsum(-1, dtype=torch.int32) - ends.int()


@overload
def position_ids(ids: npt.NDArray[Any], eos_id: int) -> Int32s: ...
@overload
def position_ids(ids: torch.Tensor, eos_id: int) -> torch.Tensor: ...
def position_ids(ids: Any, eos_id: int) -> Any:
    """Place of each token within its document, as far as the window shows it, from 0.

    Args:
        ids: token ids, shape [..., L].
        eos_id: ends a document; the token after it is at 0.

    Returns:
        int32, shape [..., L].
    """
    ends = ids[..., :-1] == eos_id
    if isinstance(ids, np.ndarray):
        place = np.arange(ids.shape[-1], dtype=np.int32)
        starts = np.zeros(ids.shape, np.int32)
        starts[..., 1:] = np.where(ends, place[1:], 0)
        return place - np.maximum.accumulate(starts, axis=-1)
    import torch
    import torch.nn.functional as F  # noqa: N812 -- torch's own name for it

    places = torch.arange(ids.shape[-1], device=ids.device)
    begins = F.pad(ends * places[1:], (1, 0))
    return (places - begins.cummax(-1).values).int()


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """Where attention may look: causal, and within one document.

    As in Grattafiori et al. 2024 (arXiv 2407.21783), section 3.2.

    Args:
        documents: document ids, shape [rows, L].

    Returns:
        bool, shape [rows, 1, L, L], as `scaled_dot_product_attention` takes it: True where a query
        (third axis) may look at a key (fourth).
    """
    import torch

    length = documents.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & causal


def document_mask_mod(documents: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The same for flex attention's `create_block_mask`, which skips blocks that are all masked.

    Args:
        documents: document ids, shape [rows, L].
    """

    def allowed(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        same: torch.Tensor = documents[row, query] == documents[row, key]
        inside: torch.Tensor = (query >= key) & same
        return inside

    return allowed

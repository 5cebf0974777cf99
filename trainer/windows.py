"""Documents inside a window, from the ids alone: each ends with the end-of-text token.

What attention needs so that no token looks into another document (block-diagonal causal
attention, as in Grattafiori et al. 2024, arXiv 2407.21783, section 3.2). A window may begin inside
a document; that part counts as a document of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def document_ids(ids: npt.NDArray[Any], eos_id: int) -> npt.NDArray[np.int32]:
    """Number of the document that each token belongs to, from 0 in every window.

    Args:
        ids: token ids, [..., L]; the end-of-text token belongs to the document it ends.

    Returns:
        int32, of the same shape.
    """
    ended = np.asarray(ids == eos_id)
    after = np.cumsum(ended, axis=-1, dtype=np.int32)
    return np.asarray(after - ended, np.int32)


def position_ids(ids: npt.NDArray[Any], eos_id: int) -> npt.NDArray[np.int32]:
    """Position of each token within its document, from 0; int32, shaped as `ids`."""
    places = np.arange(ids.shape[-1], dtype=np.int32)
    begins = np.zeros(ids.shape, bool)
    begins[..., 1:] = ids[..., :-1] == eos_id
    start = np.maximum.accumulate(np.where(begins, places, 0), axis=-1)
    return np.asarray(places - start, np.int32)


def document_mask(document: torch.Tensor) -> torch.Tensor:
    """Where attention may look: causal, and within a document only.

    Args:
        document: document ids, [rows, L].

    Returns:
        bool, [rows, 1, L, L], for `scaled_dot_product_attention`; True where a query (third axis)
        may look at a key (fourth).
    """
    import torch

    length = document.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & causal

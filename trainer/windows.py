"""Where documents lie inside windows, from the token ids alone.

A window is cut from a stream of documents, each ended by the end-of-text token. Attention that must
not cross documents needs each token's document, and its place within the document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Int32s = npt.NDArray[np.int32]


def document_ids(ids: npt.NDArray[Any], eos_id: int) -> Int32s:
    """Number of each token's document within its window, from 0.

    Args:
        ids: token ids, shape [..., L].
        eos_id: ends a document, and belongs to it.

    Returns:
        Shape [..., L]; it never decreases along a window.
    """
    ends = ids == eos_id
    numbers: Int32s = np.cumsum(ends, axis=-1, dtype=np.int32)
    numbers -= ends
    return numbers


def position_ids(ids: npt.NDArray[Any], eos_id: int) -> Int32s:
    """Place of each token within its document, as far as the window shows it, from 0.

    Args:
        ids: token ids, shape [..., L].
        eos_id: ends a document; the token after it is at 0.

    Returns:
        Shape [..., L].
    """
    place = np.arange(ids.shape[-1], dtype=np.int32)
    starts = np.zeros(ids.shape, np.int32)
    starts[..., 1:] = np.where(ids[..., :-1] == eos_id, place[1:], 0)
    return place - np.maximum.accumulate(starts, axis=-1)


def document_mask(documents: torch.Tensor) -> torch.Tensor:
    """Where attention may look: causal, and within one document (Grattafiori et al. 2024, arXiv
    2407.21783, section 3.2).

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

"""The names of `mixloop.trainer.batches.document_mask` under their former path, for one release."""

from mixloop.trainer.batches import (
    document_ids,
    document_mask,
    document_mask_mod,
    position_ids,
)

__all__ = ["document_ids", "document_mask", "document_mask_mod", "position_ids"]

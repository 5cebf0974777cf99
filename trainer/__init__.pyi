from .batches import document_ids as document_ids
from .batches import document_mask as document_mask
from .batches import document_mask_mod as document_mask_mod
from .batches import position_ids as position_ids
from .loader import MixtureDataset as MixtureDataset
from .loader import MixtureLoader as MixtureLoader

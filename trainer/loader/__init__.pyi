from .dataset import MixtureDataset as MixtureDataset
from .loader import MixtureLoader as MixtureLoader
from .refusals import check_workers as check_workers
from .saved_state import SAVED_FILE as SAVED_FILE
from .saved_state import read_saved_manifest as read_saved_manifest

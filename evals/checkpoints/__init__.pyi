from .checkpoint_folder import CheckpointError as CheckpointError
from .checkpoint_folder import read_checkpoint as read_checkpoint
from .text_encoding import Encode as Encode
from .text_encoding import own_encoder as own_encoder

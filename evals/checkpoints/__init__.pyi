from .checkpoint_folder import CheckpointError as CheckpointError
from .checkpoint_folder import read_checkpoint as read_checkpoint
from .text_encoding import encode_text as encode_text

from .checkpoint_lm import CheckpointLM as CheckpointLM
from .loading import load_checkpoint as load_checkpoint
from .tokenization import tokenizer_identity as tokenizer_identity

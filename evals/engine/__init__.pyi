from .checkpoint_lm import CheckpointLM as CheckpointLM
from .checkpoint_lm import keeps_logits as keeps_logits
from .loading import load_checkpoint as load_checkpoint
from .plain_lm import length_batches as length_batches
from .tokenization import tokenizer_identity as tokenizer_identity

from .checkpoint_lm import CheckpointError as CheckpointError
from .checkpoint_lm import CheckpointLM as CheckpointLM
from .checkpoint_lm import tokenizer_fingerprint as tokenizer_fingerprint
from .checkpoint_lm import tokenizer_identity as tokenizer_identity
from .lm_eval_command import lm_eval_main as lm_eval_main
from .loading import load_checkpoint as load_checkpoint

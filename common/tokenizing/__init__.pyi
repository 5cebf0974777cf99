from .token_probe import RECORD as RECORD
from .token_probe import TokenProbe as TokenProbe
from .token_probe import read_probe as read_probe
from .token_probe import take_probe as take_probe
from .tokenizer_file import TOKENIZER_FILE as TOKENIZER_FILE
from .tokenizer_file import exact_config as exact_config
from .tokenizer_file import read_tokenizer_file as read_tokenizer_file
from .tokenizer_file import special_tokens as special_tokens

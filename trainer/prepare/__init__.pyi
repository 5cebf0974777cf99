from .tokenise import prepare as prepare
from .tokenise import select_inputs as select_inputs

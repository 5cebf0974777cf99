"""What lies in a checkpoint's folder, read once and whole: its model and its tokenizer.

Safetensors only; no code from the checkpoint is run, and nothing that isn't in it is made up.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

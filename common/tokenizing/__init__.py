"""Tokenizers as training and evaluation both read them: `tokenizer.json` as it is, and its probe.

It knows no store and no checkpoint, and imports nothing heavier than `tokenizers`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

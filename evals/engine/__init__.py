"""The model: log-likelihoods and generation, each shared prefix computed once.

The same numbers as lm-eval's `hf` model, or the plain way; it knows no benchmark.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

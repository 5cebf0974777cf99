"""Arithmetic of mixtures: weights, the capped simplex, the ledger, repetition, run arrays.

It knows no policy and takes no decision.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

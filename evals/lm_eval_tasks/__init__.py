"""lm-eval's own tasks over our items, and the catalogue of all others.

Prompts and scoring stay lm-eval's.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

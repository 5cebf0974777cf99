"""Benchmark items: rows from local files, the hub, or installed packages.

It never asks a model and never decides how items are scored.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

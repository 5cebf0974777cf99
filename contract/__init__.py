"""The run directory: every file that trainer, controller and people exchange.

Each with its rule of acceptance. Light (standard library only); it decides nothing and never
raises into a training loop.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

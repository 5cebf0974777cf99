"""`mixloop search`: small proxy runs before the run, and the start they speak for.

It writes proxies and a prior; run.yaml stays its owner's.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

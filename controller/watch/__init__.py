"""The live screen and Prometheus' metrics.

It shows what the views read and keeps nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

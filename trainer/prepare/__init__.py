"""`mixloop prepare`: text to token stores.

It never changes a store that is being read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Running programs that a model wrote, so that they harm nothing.

Without a usable sandbox nothing is run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

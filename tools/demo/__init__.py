"""`mixloop demo`: a small model trained on real text while its mixture is controlled.

Its texts come from installed packages; nothing is downloaded.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The run as one page and its figures.

It escapes all that came from data; no script, nothing from the network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""This rank's batches: drawing, gathering, prefetching, what a model takes.

It follows the order it is given and never waits for a file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

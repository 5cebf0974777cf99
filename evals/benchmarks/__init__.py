"""What each benchmark asks and how it is scored; one file a benchmark.

It never runs the model itself.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

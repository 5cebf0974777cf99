"""A checkpoint's path in, a scorecard out.

The face holds settings and scorecards, light to import; it knows no run and no policy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Models of a value over mixtures, fitted to proxy runs, and the start they recommend.

They see points and scores, never a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

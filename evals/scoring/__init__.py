"""One checkpoint scored: scorecard, outcomes per item, samples.

What can't be scored is missing with its reason, never zero.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

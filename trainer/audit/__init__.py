"""What any rank saw, re-derived, and a run's files held against one another.

It reads; it never mends.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

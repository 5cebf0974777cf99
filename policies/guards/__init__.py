"""The bounds on every decision: soft guards first, hard guards last and re-checked.

A guard only ever makes a proposal smaller or refuses it; it never proposes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

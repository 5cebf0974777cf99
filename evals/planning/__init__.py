"""How many items of what: a pilot evaluation, the allocation, the plan.

It never changes a plan that a run has begun with.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

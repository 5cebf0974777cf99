"""Which sample of which source stands where: order, quotas, permutations, epochs.

Pure functions of the schedule; no file is read and no clock.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

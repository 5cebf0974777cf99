"""The daemon: observe the run, do the one thing that is due, look again.

Every effect may be repeated; whatever is doubtful leaves the mixture as it is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

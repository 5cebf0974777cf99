"""The processes that score: worker, client, launchers, Ray.

A crash or a hang ends one evaluation, never the controller.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

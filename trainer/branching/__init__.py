"""Branches: going on from a checkpoint of a run for a few tokens, on a mixture of their own.

One process and one device; it reads the run's schedule, sources and checkpoint and writes nothing
but the folder it is given. What a branch is good for is the controller's affair.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Worlds: small models of how benchmarks answer to a mixture, to measure policies on.

A policy that is good only here is not good: worlds show what a policy does wrong, not that it is
right. ``world_protocol`` says what a world of one's own has to offer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

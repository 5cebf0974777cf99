"""Policies: what decides the mixture, and the guards that bound every decision.

This is what a policy's author imports. Pure: nothing here does I/O, trains or evaluates.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

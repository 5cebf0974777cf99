"""Processes of ours that end with all they started: by themselves, when told to, or when we end.

It knows neither what they run nor what they say, and waits for none.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

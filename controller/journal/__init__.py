"""The run's memory: one SQLite file, one writer, sealed.

Nothing that was recorded is ever changed or lost; it decides nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Reading a run for people: status, history, comparison, samples, export.

It opens journals for reading only and never writes into a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

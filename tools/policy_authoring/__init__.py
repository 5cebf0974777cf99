"""`mixloop policies`: list, describe, new, conformance.

It starts policies in processes of their own and never in a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

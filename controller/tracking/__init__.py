"""MLflow: the journal's outbox drained into it, and `mixloop sync`.

A view, never the truth: nothing waits for it and nothing is read back but people's notes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

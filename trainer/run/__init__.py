"""One incarnation of a run: resume, order inbox, live mixture, status, checkpoints.

Only the leading rank touches the run folder; nothing here waits for a controller.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

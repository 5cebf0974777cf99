"""Pure decisions: the next action, proposals through guards, requests, heartbeat, rewinds.

No file, no database, no process, no clock: everything is passed in.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

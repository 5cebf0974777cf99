"""The training job: settings, run.yaml as a trainer reads it, learning rate, batch dealing.

It opens no source and starts nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The reference trainer: model, optimiser state, ranks, checkpoints.

Its loop is `mixloop.trainer.train`; it holds no mixing logic of its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

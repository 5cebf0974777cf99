"""The mixture in somebody else's loop: `MixtureLoader`, `MixtureDataset`.

It never steps a model or an optimiser.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

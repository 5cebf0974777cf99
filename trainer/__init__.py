"""The mixture in a training loop: `MixtureLoader`, `MixtureDataset`, the reference trainer.

Importing it loads nothing heavy. It knows no policy, no evaluation and no controller.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

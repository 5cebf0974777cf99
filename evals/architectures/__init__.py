"""What is known of model families: which of them can be computed on shared prefixes, which padded.

It looks at a model's configuration and modules and never runs it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

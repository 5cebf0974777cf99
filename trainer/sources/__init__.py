"""Sources of every format, opened in place, and the tokenizer they were made with.

It never changes a source and never decides which sample comes next.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What speaks for or against a change: objective, significance, vetoes, comparisons.

It judges scores; it never moves a weight.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

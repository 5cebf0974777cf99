"""A checkpoint plus weighted deltas of its experts: how well such a merge answers, and its slope.

Prompts, items and bytes are those of scoring, so that bits per byte compare with a scorecard's.
Nothing is trained here, no mixture is chosen, and no merge is written.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

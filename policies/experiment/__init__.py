"""``experiment``: decides on what short branches from the run's own checkpoints show.

It never plans from the run's past scores, and runs nothing itself: it asks, and reads what came.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Policy `rules`: stages, interventions with conditions and moves, trials, annealing.

It follows what run.yaml says and fits no model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

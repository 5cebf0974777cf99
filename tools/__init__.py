"""What is done without a live run: doctor, evaluate, simulate, search, demo, authoring.

Tools don't know one another and never write into a run folder that is not their own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

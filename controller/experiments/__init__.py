"""Experiments: branches from a checkpoint, trained, scored and merged, in a process of their own.

It knows nothing of the journal, writes nothing but the experiment's own folder, never touches the
files of the run, and looks at no item that judges: only at those that steer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

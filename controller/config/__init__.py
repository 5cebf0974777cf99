"""run.yaml: the whole file, validated, with the template and the schema.

It reads configuration and nothing else of a run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What a policy's author meets: an Observation in, a Proposal or Hold out; options, registry.

It never looks at a file, a clock or a model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

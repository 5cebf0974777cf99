"""The policy's observation from the journal, and the process that asks the policy.

A policy that raises, hangs or talks nonsense costs one decision.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

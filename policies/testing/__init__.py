"""The public conformance suite: what every policy must do before it may decide for a run.

```python
from mixloop.policies.testing import check_policy
report = check_policy("./mine.py:Mine", {"step": 0.05})
assert report.passed, report.failures()
```

In pytest, inherit from ``PolicyConformance``, or parametrise over ``conformance_checks()`` and
call each with a ``subject(…)``. On the command line: ``mixloop policies test ./mine.py:Mine``.
``run_so_far`` makes observations for tests of one's own. pytest itself isn't needed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

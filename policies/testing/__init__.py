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

from __future__ import annotations

from .checks import Check
from .hardships import ORDINARY, SITUATIONS, Names
from .situations import BENCHMARKS, SOURCES, many_sources, run_so_far
from .subject import Subject, subject
from .suite import (
    SLOW,
    CheckResult,
    PolicyConformance,
    Report,
    check_policy,
    conformance_checks,
    report,
)

__all__ = [
    "BENCHMARKS",
    "ORDINARY",
    "SITUATIONS",
    "SLOW",
    "SOURCES",
    "Check",
    "CheckResult",
    "Names",
    "PolicyConformance",
    "Report",
    "Subject",
    "check_policy",
    "conformance_checks",
    "many_sources",
    "report",
    "run_so_far",
    "subject",
]

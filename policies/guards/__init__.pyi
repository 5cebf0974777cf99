from .guard_registry import Guard as Guard
from .guard_state import GuardState as GuardState
from .guard_types import GuardContext as GuardContext
from .guard_types import GuardNote as GuardNote
from .guard_types import GuardResult as GuardResult
from .guard_types import GuardSettings as GuardSettings
from .pipeline import apply_guards as apply_guards

from .guard_types import GuardContext as GuardContext
from .guard_types import GuardNote as GuardNote
from .guard_types import GuardResult as GuardResult
from .guard_types import GuardSettings as GuardSettings
from .pipeline import apply_guards as apply_guards

from .child import Child as Child
from .child import WaitingChild as WaitingChild
from .child import child_environment as child_environment
from .child import wait_for_start as wait_for_start
from .kept_process import command_pid as command_pid
from .kept_process import end_kept as end_kept
from .kept_process import kept as kept
from .kept_process import start_kept as start_kept

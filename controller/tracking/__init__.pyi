from .drain_child import DRAIN_TIMEOUT as DRAIN_TIMEOUT
from .drain_child import DrainState as DrainState
from .drain_child import drain_request as drain_request
from .sync import sync_run as sync_run

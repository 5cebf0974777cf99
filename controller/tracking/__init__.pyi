from .drain_child import MlflowDrain as MlflowDrain
from .sync import sync_run as sync_run

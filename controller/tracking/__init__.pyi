from .drain_child import MlflowDrain as MlflowDrain
from .server_certificate import CERTIFICATES as CERTIFICATES
from .server_certificate import why_not_trusted as why_not_trusted
from .sync import sync_run as sync_run

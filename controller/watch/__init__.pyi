from .metrics_server import MetricsServer as MetricsServer
from .metrics_server import check_address as check_address
from .status_screen import watch as watch
from .timings import Timings as Timings

from .metrics_server import MetricsServer as MetricsServer
from .metrics_server import check_address as check_address
from .prometheus import Timings as Timings
from .status_screen import watch as watch

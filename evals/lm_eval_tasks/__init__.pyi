from .catalog import unknown_benchmarks as unknown_benchmarks
from .items import TaskItems as TaskItems
from .items import load_further as load_further
from .stock_task import StockTask as StockTask
from .stock_task import build_task as build_task

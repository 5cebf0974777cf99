from .base import Benchmark as Benchmark
from .base import Question as Question
from .load import load_items as load_items
from .load import make_benchmark as make_benchmark
from .shots import BenchmarkPlan as BenchmarkPlan
from .shots import fit_shots as fit_shots
